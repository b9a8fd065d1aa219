"""A teacher's weights from a file that nobody vouches for: bytes, hash, names, types, shapes and values are checked.

Only safetensors is read, which holds numbers and nothing that could run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from data.plugins import PluginError
from teacher_server.card import TeacherCard
from teacher_server.errors import LibraryError
from teacher_server.files import read_file
from teacher_server.library import TeacherEntry
from teacher_server.zoo.names import ARCHITECTURES
from teacher_server.zoo.network import VideoNetwork

_MAX_HEADER_BYTES = 2**20  # names, types, shapes and notes of the file; ours take some 30 kB


def build_teacher_network(card: TeacherCard) -> VideoNetwork:
    """The network that the card describes, with the one head that it serves and no projector.

    Raises PluginError for a plug-in that nobody has allowed here, or that is not there.
    """
    pretext = len(card.classes) if card.head == "pretext" else 0
    action = len(card.classes) if card.head == "action" else 0
    return VideoNetwork(card.arch, card.width, pretext_classes=pretext, action_classes=action, projector=False)


@contextmanager
def scaffold(arch: str) -> Iterator[None]:
    """In here a network is made only to be looked at or filled: it changes nobody's random numbers.

    The zoo's take no memory for their weights, so that a card that claims a huge one costs nothing. A plug-in's are
    made in full: what it keeps in no weights file, such as buffers that are not persistent, is there already.
    """
    with torch.device("meta") if arch in ARCHITECTURES else torch.random.fork_rng(devices=[]):
        yield


def load_network(entry: TeacherEntry, card: TeacherCard) -> VideoNetwork:
    """The network of the entry's card with its weights. Raises LibraryError: which file, and what is wrong with it."""
    return network_of(card, load_weights(entry, card), str(entry.weights))


def load_weights(entry: TeacherEntry, card: TeacherCard) -> dict[str, Tensor]:
    """The tensors of an entry's file, by name; whether they fit the card is not checked.

    The file is read once, and only if its size can be right: the bytes that are hashed are those that are used.
    Raises LibraryError.
    """
    wanted = _skeleton(card, str(entry.folder)).state_dict().values()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in wanted)
    content = read_file(entry.weights, num_bytes + _MAX_HEADER_BYTES)
    found = hashlib.sha256(content).hexdigest()
    if found != entry.weights_sha256:
        raise LibraryError(
            str(entry.weights),
            f"its sha256 is {found[:12]}, the library said {entry.weights_sha256[:12]}: it was changed since",
        )
    return _parse(str(entry.weights), content)


def network_of(card: TeacherCard, weights: Mapping[str, Tensor], source: str) -> VideoNetwork:
    """The card's network with weights that are in memory already; they are shared. Raises LibraryError for `source`."""
    return _filled(_skeleton(card, source), weights, source)


def _skeleton(card: TeacherCard, path: str) -> VideoNetwork:
    """The network to fill. Raises LibraryError when there is none, or it has other features than the card says."""
    try:
        with scaffold(card.arch):
            network = build_teacher_network(card)
    except PluginError as error:
        raise LibraryError(path, str(error)) from None
    if network.backbone.feature_size != card.feature_size:
        raise LibraryError(
            path, f"feature_size is {card.feature_size}, {card.arch} has {network.backbone.feature_size}"
        )
    return network


def _parse(path: str, content: bytes) -> dict[str, Tensor]:
    try:
        return load_safetensors(content)
    # Not only its own error comes out of the parser: KeyError for a type that torch has not, for example.
    except (SafetensorError, KeyError, ValueError, TypeError, AssertionError, RuntimeError, OverflowError) as error:
        raise LibraryError(path, f"cannot be read as safetensors: {str(error)[:300]}") from None


def _filled(network: VideoNetwork, tensors: Mapping[str, Tensor], path: str) -> VideoNetwork:
    wanted = network.state_dict()
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise LibraryError(
            path, f"{len(missing)} tensors are missing {missing[:3]}, {len(extra)} are unknown {extra[:3]}"[:500]
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise LibraryError(
                path,
                f"{name} is {tensor.dtype} {list(tensor.shape)}, the card's network has "
                f"{wanted[name].dtype} {list(wanted[name].shape)}",
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise LibraryError(path, f"{name} holds values that are not finite")
    network.load_state_dict(dict(tensors), assign=True)
    return network
