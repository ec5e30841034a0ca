"""Order of the data: nothing lost or doubled, and nothing depends on workers, processes or what ran before."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils import signal_handling

from common.errors import UserError
from tests.train.conftest import make_photographs
from train.configure import load_settings
from train.data.augment import BatchMixing, model_transform
from train.data.batch import Batch, SampleKey, to_input
from train.data.images import Photographs, open_data
from train.data.loader import load, make_loader
from train.data.order import SampleOrder, TrainingSampler, ValidationSampler
from train.randomness import random_state, seeded, set_random_state
from train.settings import Settings
from train.stopping import Stop, StopListener


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    make_photographs(tmp_path / "photos")
    arguments = ["data.image_size=32", "data.eval_size=32", "data.workers=0", "batch_size=4", "global_batch=8"]
    return load_settings(["recipe=convnext_t", f"data.root={tmp_path}/photos", "data.val_fraction=0.25", *arguments])


def test_every_epoch_holds_every_sample_once_although_batches_run_over_its_end(settings: Settings) -> None:
    source, _ = open_data(settings)
    assert len(source) == 18  # 24 without a quarter; no multiple of the global batch
    order = SampleOrder(source, seed=3)
    keys = [key for batch in TrainingSampler(order, 0, 9, 4, 2, 0, 1) for key in batch]
    for epoch in range(4):
        assert sorted(k.sample for k in keys if k.epoch == epoch) == list(range(18))
    orders = [[k.sample for k in keys if k.epoch == epoch] for epoch in range(4)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_an_update_sees_the_same_samples_under_any_number_of_processes(settings: Settings, world: int) -> None:
    source, _ = open_data(settings)
    reference = SampleOrder(source, 0).keys(0, 40)
    samplers = [
        list(TrainingSampler(SampleOrder(source, 0), 0, 5, 2, 4 // world, rank, world)) for rank in range(world)
    ]
    for update in range(5):
        seen = [k for one in samplers for batch in one[update * 4 // world : (update + 1) * 4 // world] for k in batch]
        assert sorted(seen) == sorted(reference[update * 8 : (update + 1) * 8])


def test_a_resumed_sampler_goes_on_where_the_first_stopped(settings: Settings) -> None:
    source, _ = open_data(settings)
    whole = list(TrainingSampler(SampleOrder(source, 0), 0, 6, 4, 2, 0, 1))
    assert list(TrainingSampler(SampleOrder(source, 0), 4, 6, 4, 2, 0, 1)) == whole[8:]


def test_repeated_augmentation_fills_the_epoch_with_versions(settings: Settings) -> None:
    source, _ = open_data(settings)
    keys = SampleOrder(source, 0, repeats=3).keys(0, 18)
    assert len(set(keys)) == 18
    assert len({k.sample for k in keys}) == 6
    assert sorted({k.repeat for k in keys}) == [0, 1, 2]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 8])
def test_validation_visits_every_picture_once(world: int, count: int) -> None:
    seen = [k.sample for rank in range(world) for batch in ValidationSampler(count, 3, rank, world) for k in batch]
    assert sorted(seen) == list(range(count))


def test_a_sample_is_a_function_of_seed_epoch_and_index(settings: Settings) -> None:
    source, _ = open_data(settings)
    assert isinstance(source, Photographs)
    key = SampleKey(2, 5, 0)
    alone = source.__getitems__([key])
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    among = source.__getitems__([SampleKey(0, 1, 0), key, SampleKey(3, 5, 0)])
    assert isinstance(alone, Batch) and isinstance(among, Batch)
    assert torch.equal(alone.images[0], among.images[1])
    assert not torch.equal(alone.images[0], among.images[2])  # another epoch, another crop


def test_drawing_for_samples_leaves_the_generators_alone(settings: Settings) -> None:
    source, _ = open_data(settings)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    source.__getitems__([SampleKey(0, 0, 0)])
    BatchMixing(settings, 3, 0)(torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.long), 0, 0)
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


@pytest.mark.parametrize("source", ["imagefolder", "scenes"])
def test_workers_do_not_change_batches(settings: Settings, source: str) -> None:
    settings.data.source, settings.data.train_images = source, 21
    train, _ = open_data(settings)
    found = []
    for workers in (0, 2):
        settings.data.workers = workers
        sampler = TrainingSampler(SampleOrder(train, 0), 0, 3, 8, 1, 0, 1)  # the third batch spans two epochs
        found.append(list(load(make_loader(train, sampler, settings, pin=False))))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
        inputs = [to_input(batch, model_transform(settings), torch.device("cpu"), True) for batch in (one, two)]
        assert torch.equal(*inputs)
    assert (source == "scenes") == all(batch.erasing is None for batch in found[1])


def test_loading_leaves_the_models_generator_alone(settings: Settings) -> None:
    settings.data.workers = 2
    _, val = open_data(settings)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(load(make_loader(val, ValidationSampler(len(val), 4, 0, 1), settings, pin=False)))
    assert torch.equal(before, torch.get_rng_state())


def test_mixing_depends_on_update_micro_batch_and_rank_only(settings: Settings) -> None:
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 3

    def mixed(update: int, micro: int, rank: int) -> torch.Tensor:
        return BatchMixing(settings, 3, rank)(images.clone(), labels, update, micro)[1]

    first = mixed(4, 0, 0)
    torch.rand(3)
    assert torch.equal(first, mixed(4, 0, 0))
    others = [mixed(5, 0, 0), mixed(4, 1, 0), mixed(4, 0, 1)]
    assert all(not torch.equal(first, other) for other in others)
    assert torch.allclose(first.sum(1), torch.ones(8))


def test_random_state_comes_back() -> None:
    state = random_state()
    first = random.random(), np.random.rand(), torch.rand(())
    with seeded(1, 2):
        torch.rand(5)
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(())) == first


def test_a_label_beyond_the_outputs_is_an_error(settings: Settings) -> None:
    settings.num_classes = 2
    source, _ = open_data(settings)
    sampler = TrainingSampler(SampleOrder(source, 0), 0, 2, 8, 1, 0, 1)
    with pytest.raises(UserError, match="2 outputs"):
        list(load(make_loader(source, sampler, settings, pin=False)))


def test_a_signal_to_the_whole_job_while_the_loader_starts_does_not_take_its_processes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun sends SIGTERM to loader processes, too; in their first moments torch's own handler would obey it."""
    original = signal_handling._set_worker_signal_handlers

    def struck() -> None:
        original()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", struck)
    settings.data.workers = 2
    _, source = open_data(settings)
    listener = StopListener()
    try:
        batches = list(load(make_loader(source, ValidationSampler(len(source), 2, 0, 1), settings, pin=False)))
        assert sum(len(batch.labels) for batch in batches) == len(source)
        assert listener.wish is Stop.NO
        os.kill(os.getpid(), signal.SIGTERM)  # this process itself listens again
        assert listener.wish is Stop.SIGNAL
    finally:
        listener.close()


def test_a_process_that_exits_with_its_loader_open_does_not_wait_for_ever(settings: Settings) -> None:
    """An error leaves the loader in a traceback; at its exit Python ends the loader's processes and waits for them."""
    program = """
        import sys
        from train.data.images import open_data
        from train.configure import load_settings
        from train.data.loader import load, make_loader
        from train.data.order import ValidationSampler
        settings = load_settings(sys.argv[1:])
        _, source = open_data(settings)
        loader = make_loader(source, ValidationSampler(len(source), 1, 0, 1), settings, pin=False, stays=True)
        batches = load(loader)
        next(batches)
        kept = [loader, batches]
        kept.append(kept)
        sys.exit(3)
    """
    given = ["recipe=convnext_t", f"data.root={settings.data.root}", "data.val_fraction=0.25", "data.workers=2"]
    command = [sys.executable, "-c", textwrap.dedent(program), *given]
    ended = subprocess.run(command, timeout=120, capture_output=True, text=True, start_new_session=True)
    assert (ended.returncode, ended.stderr) == (3, "")
