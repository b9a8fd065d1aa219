"""A stock Triton client against a gateway on a real port, with real networks behind it, and the same over raw HTTP."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from data.render import render_batch
from data.store import ClipStore
from data.views_arrow import to_arrow
from services.asking import GatewayOptions
from services.gateway import create_app
from services.offline import OfflineControl
from teacher_server.clients.inprocess import InProcessTeacherClient
from teacher_server.engine.teacher import FrozenTeacher
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherId

HELPERS = Path(__file__).parents[1] / "teacher_server"
PATIENCE_S = 30.0


def load(name: str) -> ModuleType:
    """Test folders are no packages."""
    spec = importlib.util.spec_from_file_location(name, HELPERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    return load("tiny")


@pytest.fixture(scope="module")
def teachers(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TeacherLibrary:
    return tiny.build_library(tmp_path_factory.mktemp("library"), tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def store(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return tiny.build_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture(scope="module")
def url(teachers: TeacherLibrary, store: ClipStore) -> Iterator[str]:
    app = create_app(
        InProcessTeacherClient(teachers),
        teachers,
        OfflineControl(teachers),  # type: ignore[arg-type] # no run talks to this gateway
        stores_root=store.path.parent,
        check_teachers=lambda: frozenset({TeacherId("alpha", 1)}),
        options=GatewayOptions(max_body_bytes=2**20, body_timeout_s=0.5),
    )
    with load("http_servers").serve(app) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=PATIENCE_S) as found:
        yield found


def pixels_input(pixels: np.ndarray, binary: bool = True) -> triton.InferInput:
    given = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    return given.set_data_from_numpy(pixels, binary_data=binary)


def random_clips(num_clips: int) -> np.ndarray:
    return np.random.default_rng(num_clips).integers(0, 256, (num_clips, 8, 32, 32, 3), dtype=np.uint8)


def test_it_is_live_ready_and_lists_its_models(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "preceptor"
    index = {(entry["name"], entry["version"]): entry["state"] for entry in client.get_model_repository_index()}
    assert index["alpha", "1"] == "READY"
    assert index["alpha", "2"] == "UNAVAILABLE"
    assert client.is_model_ready("alpha")
    assert client.is_model_ready("alpha", "1")
    assert not client.is_model_ready("alpha", "2")
    assert not client.is_model_ready("nobody")


def test_the_metadata_of_a_model_is_what_its_questions_take(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("beta", "1")
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("beta", ["1"], "preceptor")
    assert metadata["inputs"][0] == {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, 32, 32, 3]}
    assert metadata["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "features", "datatype": "FP32", "shape": [-1, 64]},
    ]


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize(("name", "version", "num_clips"), [("alpha", "2", 6), ("beta", "1", 2)])
def test_answers_to_binary_pixels_are_the_bits_of_the_frozen_teacher(
    client: triton.InferenceServerClient,
    teachers: TeacherLibrary,
    name: str,
    version: str,
    num_clips: int,
    binary_out: bool,
) -> None:
    pixels = random_clips(num_clips)
    frozen = FrozenTeacher.load(teachers.entry(TeacherId(name, int(version))))
    expected = frozen.answer(pixels)
    result = client.infer(
        name,
        [pixels_input(pixels)],
        version,
        outputs=[triton.InferRequestedOutput(output, binary_data=binary_out) for output in ("logits", "features")],
        request_id="mine",
        parameters={"temperature": 4},
    )
    np.testing.assert_array_equal(result.as_numpy("logits"), expected.logits / np.float32(4))
    np.testing.assert_array_equal(result.as_numpy("features"), expected.features)
    said = result.get_response()
    assert (said["model_name"], said["model_version"], said["id"]) == (name, version, "mine")
    assert said["parameters"]["digest"] == frozen.digest
    assert said["parameters"]["temperature"] == 4


def test_without_outputs_asked_for_it_answers_with_logits_alone(
    client: triton.InferenceServerClient, teachers: TeacherLibrary
) -> None:
    pixels = random_clips(3)
    result = client.infer("alpha", [pixels_input(pixels)], timeout=10_000_000)
    expected = FrozenTeacher.load(teachers.entry(TeacherId("alpha", 1))).answer(pixels).logits
    np.testing.assert_array_equal(result.as_numpy("logits"), expected)
    assert result.as_numpy("features") is None


def test_float16_is_the_float32_rounded(client: triton.InferenceServerClient) -> None:
    pixels = random_clips(3)
    full, half = (
        client.infer("alpha", [pixels_input(pixels)], parameters={"dtype": dtype}).as_numpy("logits")
        for dtype in ("float32", "float16")
    )
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_pixels_as_json_numbers_are_answered_alike(client: triton.InferenceServerClient) -> None:
    pixels = random_clips(1)
    binary, numbers = (
        client.infer("beta", [pixels_input(pixels, binary)]).as_numpy("logits") for binary in (True, False)
    )
    np.testing.assert_array_equal(binary, numbers)


def test_views_are_answered_as_their_pixels_are(
    client: triton.InferenceServerClient, tiny: ModuleType, store: ClipStore, teachers: TeacherLibrary
) -> None:
    batch = tiny.draw(store, 5)
    blob = np.frombuffer(to_arrow(batch), np.uint8)
    given = triton.InferInput("views", [len(blob)], "UINT8").set_data_from_numpy(blob)
    logits = client.infer("alpha", [given], parameters={"store": "tiny"}).as_numpy("logits")
    expected = FrozenTeacher.load(teachers.entry(TeacherId("alpha", 1))).answer(
        render_batch(store.gather(batch), batch)
    )
    np.testing.assert_array_equal(logits, expected.logits)


def test_errors_carry_our_sentence(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as unknown:
        client.infer("nobody", [pixels_input(random_clips(3))])
    assert (unknown.value.status(), unknown.value.message()[:20]) == ("404", "no teacher 'nobody':")
    with pytest.raises(InferenceServerException, match="alpha@1 takes 32x32 pixels, got 30x30") as wrong:
        client.infer("alpha", [pixels_input(random_clips(3)[:, :, :30, :30].copy())])
    assert wrong.value.status() == "422"
    with pytest.raises(InferenceServerException, match="content-encoding 'gzip' is not taken") as packed:
        client.infer("alpha", [pixels_input(random_clips(3))], request_compression_algorithm="gzip")
    assert packed.value.status() == "415"
    with pytest.raises(InferenceServerException, match="no teacher"):
        client.get_model_metadata("nobody")


def test_many_threads_get_their_own_answers(url: str, teachers: TeacherLibrary) -> None:
    frozen, wrong = FrozenTeacher.load(teachers.entry(TeacherId("beta", 1))), []

    def ask(num_clips: int) -> None:
        pixels = random_clips(num_clips)
        head = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape),
                            "parameters": {"binary_data_size": pixels.nbytes}}]}  # fmt: skip
        content = json.dumps(head).encode()
        headers = {"Inference-Header-Content-Length": str(len(content))}
        with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as http:
            answer = http.post("/v2/models/beta/infer", content=content + pixels.tobytes(), headers=headers)
        (logits,) = answer.json()["outputs"]
        if not np.array_equal(np.float32(logits["data"]).reshape(logits["shape"]), expected[num_clips]):
            wrong.append(num_clips)

    expected = {count: frozen.answer(random_clips(count)).logits for count in range(1, 9)}
    threads = [threading.Thread(target=ask, args=(count,)) for count in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


# ---- bodies that do not behave, over real connections


def exchange(url: str, *pieces: bytes) -> bytes:
    """What comes back on a connection that sends these and then nothing more."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return connection.recv(65536)


HEAD = b"POST /v2/models/alpha/infer HTTP/1.1\r\nHost: localhost\r\n"


def test_a_chunked_body_is_cut_off_at_the_limit(url: str) -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    answer = exchange(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 17)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_never_ends_is_408(url: str) -> None:
    answer = exchange(url, HEAD + b"Content-Length: 1000\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_declared_size_over_the_limit_is_413_before_the_body(url: str) -> None:
    answer = exchange(url, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
