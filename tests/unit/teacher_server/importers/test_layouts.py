"""Tables of names: every tensor of every architecture has one name in each layout."""

from __future__ import annotations

from types import ModuleType

import pytest

from teacher_server.importers import torchvision
from teacher_server.importers.errors import ImportRefused
from teacher_server.importers.layouts import choose_layout, rename
from teacher_server.zoo.names import ARCHITECTURES, PAPER_ARCHITECTURES, TORCHVISION_ARCHITECTURES


@pytest.mark.parametrize("prefix", ["base_network.", ""])
@pytest.mark.parametrize("arch", PAPER_ARCHITECTURES)
def test_every_name_of_vcop_leads_back_to_ours(foreign: ModuleType, arch: str, prefix: str) -> None:
    network = foreign.random_network(arch)
    theirs = foreign.vcop_tensors(network, prefix)
    layout = choose_layout("x", foreign.shapes_of(theirs))
    renaming = rename("x", layout, theirs)
    assert (layout.name, layout.arch, renaming.unused) == ("vcop", arch, ())
    assert {name.replace("pretext_head.linear", "head") for name in network.state_dict()} == set(renaming.ours.values())
    for name in network.state_dict():
        foreign_name = (prefix if name.startswith("backbone.") else "") + foreign.vcop_name(name)
        assert renaming.ours[foreign_name] == name.replace("pretext_head.linear", "head")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_our_own_names_stay(foreign: ModuleType, arch: str) -> None:
    names = foreign.random_network(arch, action_classes=3).state_dict()
    layout = choose_layout("x", foreign.shapes_of(names))
    assert (layout.name, layout.arch) == ("native", arch)
    assert rename("x", layout, names).ours == {name: name for name in names}


def test_names_that_nobody_knows_are_shown() -> None:
    with pytest.raises(ImportRefused, match=r"x cannot be imported: its 2 tensors \(a.weight, b.weight\) fit none of"):
        choose_layout("x", {"b.weight": (1,), "a.weight": (2,)})


def test_a_layout_that_was_asked_for_and_does_not_fit_is_refused(foreign: ModuleType) -> None:
    names = foreign.shapes_of(foreign.random_network("r3d").state_dict())
    with pytest.raises(ImportRefused, match="fit none of vcop/c3d, vcop/r3d, vcop/r2plus1d"):
        choose_layout("x", names, "vcop")
    with pytest.raises(ImportRefused, match="fit none of native/c3d, vcop/c3d"):
        choose_layout("x", names, arch="c3d")


def test_names_of_two_layouts_at_once_ask_for_a_choice(foreign: ModuleType) -> None:
    network = foreign.random_network("r3d")
    both = foreign.shapes_of(network.state_dict() | foreign.vcop_tensors(network))
    with pytest.raises(ImportRefused, match="its names fit native/r3d, vcop/r3d: choose with --layout and --arch"):
        choose_layout("x", both)
    assert choose_layout("x", both, "vcop").name == "vcop"


def test_a_tensor_that_is_there_with_and_without_prefix_is_refused(foreign: ModuleType) -> None:
    network = foreign.random_network("r3d")
    names = foreign.shapes_of(foreign.vcop_tensors(network)) | {"bn1.weight": (8,)}
    with pytest.raises(ImportRefused, match=r"base_network.bn1.weight and bn1.weight are the same tensor"):
        rename("x", choose_layout("x", names), names)


@pytest.mark.parametrize("arch", TORCHVISION_ARCHITECTURES)
def test_every_name_of_torchvision_leads_back_to_ours(foreign: ModuleType, arch: str) -> None:
    network = foreign.random_network(arch, pretext_classes=0, action_classes=3, projector=False)
    theirs = foreign.torchvision_tensors(network)
    layout = choose_layout("x", foreign.shapes_of(theirs))
    renaming = rename("x", layout, theirs)
    assert (layout.name, layout.arch, renaming.unused) == ("torchvision", arch, ())
    assert set(renaming.ours.values()) == set(network.state_dict())


@pytest.mark.parametrize("arch", TORCHVISION_ARCHITECTURES)
def test_every_name_of_pcl_s_torchvision_networks_leads_back_to_ours(foreign: ModuleType, arch: str) -> None:
    network = foreign.random_network(arch, pretext_classes=0, action_classes=3)
    theirs = foreign.pcl_tensors(network)
    layout = choose_layout("x", foreign.shapes_of(theirs))
    renaming = rename("x", layout, theirs)
    assert (layout.name, layout.arch, renaming.unused) == ("pcl", arch, ())
    ours = {name.replace("action_head.linear", "head") for name in network.state_dict()}
    assert set(renaming.ours.values()) == ours
    assert renaming.ours["base_network.2.0.downsample.1.bias"] == "backbone.layer2.0.downsample.1.bias"


@pytest.mark.parametrize("arch", TORCHVISION_ARCHITECTURES)
def test_exported_names_are_read_again(foreign: ModuleType, arch: str) -> None:
    names = foreign.random_network(arch, action_classes=3).state_dict()
    layout = next(x for x in torchvision.LAYOUTS if x.arch == arch)
    assert {layout.ours(torchvision.exported_name(name)) for name in names} == set(names)
