"""Checkpoints that were altered, or made by the first format: refused with a reason, or gone on with bit for bit."""

import contextlib
import copy
import warnings

import pytest
import torch

import genfast
from genfast._errors import RunError
from genfast.recipes._chains import ChainRecipe
from genfast.training.checkpoint import CHECKPOINT, FORMAT, load_checkpoint

QUICK = {"device": "cpu", "batch_size": 16, "log_every": 5, "progress": False}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    genfast.fit("rbm", out=folder, hidden=4, steps=5, method="pcd", momentum=0.5, **QUICK)
    return folder


@pytest.fixture
def saved(pristine, tmp_path):
    """A run, and how to store another state in its checkpoint."""
    state = copy.deepcopy(vars(load_checkpoint(pristine / CHECKPOINT)))

    def store(**changes):
        changed = {"format": FORMAT, **state, **changes}
        torch.save({name: value for name, value in changed.items() if value is not KeyError}, tmp_path / CHECKPOINT)
        return tmp_path

    return state, store


def altered(state):
    """Changes of fields, each with the words that the refusal should have."""
    rng = state["ranks"][0]["rng"]
    model, config = state["model"], state["config"]
    for name in state:
        yield {name: KeyError}, [f"has no field '{name}'" if name != "config" else "is no checkpoint of genfast"]
    yield {"colour": "red"}, ["has an unknown field 'colour'"]
    yield {"step": "many"}, ["'step' is 'many', want an integer of at least 0"]
    yield {"step": -1}, ["'step' is -1"]
    yield {"dim": 0}, ["'dim' is 0"]
    yield {"dim": 2.0}, ["'dim' is 2.0"]
    yield {"shape": (3, 3)}, ["'shape' is (3, 3), want None or sizes with product 64"]
    yield {"seconds": float("nan")}, ["'seconds' is nan"]
    yield {"start": "low"}, ["'start' is 'low'"]
    yield {"fingerprint": 3}, ["'fingerprint' is 3"]
    yield {"config": "rbm"}, ["'config' is 'rbm'"]
    yield {"config": {**config, "model": "gan"}}, ["unknown model 'gan'"]
    yield {"config": {**config, "colour": "red"}}, ["rbm has no option 'colour'"]
    yield {"config": {**config, "hidden": "many"}}, ["hidden: got 'many', want an integer"]
    yield {"config": {**config, "lr": -1.0}}, ["lr: got -1.0, want above 0"]
    yield {"config": {**config, "batch_size": None}}, ["batch_size: got None, want an integer"]
    yield {"model": {"W": 3}}, ["'model'"]
    yield {"model": {**model, "W": torch.zeros(3, 3)}}, ["does not fit the model"]
    yield {"model": {k: v for k, v in model.items() if k != "vbias"}}, ["does not fit the model", "vbias"]
    yield {"model": {**model, "W": model["W"] * torch.nan}}, ["parameter W has 256 non-finite values of 256"]
    yield {"average": {"W": torch.zeros(3, 3)}}, ["mean has other parameters"]
    yield {"optimizer": []}, ["'optimizer'"]
    yield {"ranks": []}, ["'ranks' is []"]
    yield {"ranks": [{"chains": rng}]}, ["'ranks'"]
    yield {"ranks": [{**state["ranks"][0], "rng": torch.zeros(3)}]}, ["does not fit the run"]
    yield {"ranks": [{**state["ranks"][0], "chains": torch.zeros(4, 3)}]}, ["chains are not states 0/1 of 64 units"]
    yield {"ranks": [{**state["ranks"][0], "chains": torch.full((4, 64), 0.5)}]}, ["chains are not states 0/1"]


def test_altered_fields_are_named(saved):
    state, store = saved
    for changes, words in altered(state):
        folder = store(**changes)
        with pytest.raises(ValueError) as info:
            genfast.fit("rbm", out=folder, resume=True, steps=9, **QUICK)
        for word in words:
            assert word in str(info.value), (changes, str(info.value))


def test_sampling_reads_as_carefully(saved):
    state, store = saved
    for changes, _words in altered(state):
        if not changes.keys() & {"optimizer", "start", "ranks"}:  # of no use to it
            with pytest.raises(ValueError):
                genfast.load(store(**changes))


def test_a_state_of_the_optimiser_with_another_shape_is_refused(saved):
    state, store = saved
    optimizer = copy.deepcopy(state["optimizer"])
    optimizer["state"][0]["momentum_buffer"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"does not fit the optimiser: momentum_buffer has shape \[2, 2\]"):
        genfast.fit("rbm", out=store(optimizer=optimizer), resume=True, steps=9, **QUICK)


def test_a_file_damaged_anywhere_is_refused(pristine, tmp_path):
    """In the directory of the zip file 8 and 14 name compressions that its parts do not have."""
    whole, path = (pristine / CHECKPOINT).read_bytes(), tmp_path / CHECKPOINT
    directory = whole.index(b"PK\1\2")
    refused = 0
    for at in range(directory, whole.index(b"PK\1\2", directory + 4)):
        for byte in (8, 14, 255):
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            with contextlib.suppress(RunError):  # what is damaged may be of no use
                load_checkpoint(path)
                continue
            refused += 1
    assert refused > 50


# -- runs of format 1 -------------------------------------------------------------------------------------------------


def format_1(model, tmp_path):
    """A run as the first format wrote it: the options of all models in one config, Adam without its fused kernel."""
    old = {"hidden": 0, "layers": 0, "k": 1, "method": "cd", "momentum": 0.0, "epochs": None, "steps": 6, "seed": 2}
    if model == "rbm":
        chosen = {"data": "digits", "batch_size": 16, "lr": 0.1, "hidden": 4, "method": "pcd", "k": 2}
        today = {"average": 0, **chosen, "momentum": 0.0}
    else:
        chosen = {"data": "moons", "batch_size": 16, "lr": 1e-3, "hidden": 8, "layers": 2}
        today = {**chosen, "lr_decay": 0, "clip": 0.0}
        if model == "planar":
            chosen = {**chosen, "hidden": 0, "data": "u2"}
            today = {**today, "data": "u2"}
            del today["hidden"]
    genfast.fit(model, out=tmp_path / "old", steps=6, seed=2, progress=False, device="cpu", log_every=3, **today)
    path = tmp_path / "old" / CHECKPOINT
    state = vars(load_checkpoint(path))
    for name in ("start", "fingerprint", "average"):
        del state[name]
    for group in state["optimizer"]["param_groups"]:
        if "fused" in group:
            group["fused"] = None
    state["ranks"] = [{k: v for k, v in rank.items() if k in ("rng", "chains")} for rank in state["ranks"]]
    torch.save({"format": 1, **state, "config": {"model": model, **old, **chosen}}, path)
    return tmp_path / "old", today


@pytest.mark.parametrize("model", ["rbm", "planar", "realnvp", "nsf"])
def test_a_run_of_format_1_goes_on(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ChainRecipe, "new_seeds", staticmethod(lambda _: None)
    )  # as it was then: from the default generator
    old, options = format_1(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = genfast.fit(model, out=old, resume=True, steps=12, progress=False, device="cpu", log_every=3)
    assert result.step == 12
    assert load_checkpoint(old / CHECKPOINT).config["model"] == model
    whole = genfast.fit(model, steps=12, seed=2, progress=False, device="cpu", log_every=3, **options)
    for (name, a), b in zip(result.model.named_parameters(), whole.model.parameters(), strict=True):
        # Adam without its fused kernel rounds otherwise.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
    assert genfast.load(old).state_dict().keys() == whole.model.state_dict().keys()
