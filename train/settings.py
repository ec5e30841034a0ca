"""Every setting of a run, with its meaning under the field: defaults < `recipes/NAME.yaml` < `key=value`."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

LOSS_TERMS: dict[str, str] = {
    # name of the term, and of its settings in the group `loss`: module and class
}

Group = TypeVar("Group")


def with_terms(group: type[Group]) -> type[Group]:
    """Give a class, before it becomes a dataclass, the settings of each term in `LOSS_TERMS`."""
    for name, place in LOSS_TERMS.items():
        module, _, kind = place.partition(":")
        term = getattr(import_module(module), kind)
        group.__annotations__[name] = term
        setattr(group, name, field(default_factory=term))
    return group


@dataclass
class DataSettings:
    """Where images come from and how large they are."""

    source: str = "imagefolder"
    """`imagefolder`, `hf:REPOSITORY` (hub or local), `parquet:PATTERN` or `webdataset:PATTERN`; generated: `scenes`,
    and `scenes:jpeg`, the same as JPEG files, which are augmented like photographs."""
    root: str | None = None
    """imagefolder: a folder with train/ and val/ class folders, or the class folders themselves. Shards: the folder
    that a relative PATTERN starts from."""
    val_root: str | None = None
    """imagefolder: class folders for validation, if they are not under root. Shards: the pattern of validation."""
    val_fraction: float = 0.1
    """Share of the images held out for validation where the source has no validation part of its own."""
    train_split: str = "train"
    """hf: name of the training split."""
    val_split: str = "validation"
    """hf: name of the validation split."""
    image_size: int = 224
    """Side of a training image, in pixels."""
    eval_size: int | None = None
    """Side of a validation image; by default what the model was evaluated with in the study."""
    workers: int | None = None
    """Processes per device that load images; 0 loads in the training process. By default as many as the device
    has of the machine's cores, less one, at most 12."""
    prefetch: int = 2
    """Batches that each worker prepares ahead in training."""
    train_images: int = 12000
    """scenes: images per epoch."""
    val_images: int = 1200
    """scenes: images for validation."""
    difficulty: float = 0.6
    """scenes: 0 (easy) to 1 (hard)."""
    scene_seed: int = 0
    """scenes: names the data set."""


@dataclass
class AugmentSettings:
    """Augmentation of photographs (by timm), and mixing of a batch."""

    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Area of the random crop, as a share of the image."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    auto: str | None = None
    """timm's RandAugment or AutoAugment, such as `rand-m9-mstd0.5-inc1`."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation jitter; without effect where `auto` is given, as in timm."""
    interpolation: str = "bicubic"
    """Of the random resized crop: `bicubic`, `bilinear` or `random`."""
    erase_prob: float = 0.0
    """Probability of random erasing."""
    erase_mode: str = "pixel"
    """What erased pixels become: `const`, `rand` or `pixel`."""
    mixup: float = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 for none."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed."""
    switch_prob: float = 0.5
    """Probability of cutmix where both are on."""
    repeats: int = 1
    """Repeated augmentation (Hoffer et al., arXiv 1901.09335): so many versions of each image in the epoch."""


@dataclass
@with_terms
class LossSettings:
    """The loss of classification, and a group for each term that may be added to it."""

    kind: str = "cross_entropy"
    """`cross_entropy`, or `bce`: one binary cross-entropy per class (Wightman et al., arXiv 2110.00476)."""
    smoothing: float = 0.0
    """Label smoothing."""
    bce_threshold: float | None = None
    """bce: targets above it become 1 and the others 0."""


@dataclass
class OptimSettings:
    """The optimiser and which parameters decay."""

    name: str = "adamw"
    """`adamw`, `lamb`, or any other optimiser of timm."""
    lr: float = 1e-3
    """Peak learning rate at `global_batch`; never rescaled."""
    weight_decay: float = 0.05
    """Weight decay. Positions and sigmas never decay."""
    decay_norm_bias: bool = False
    """Also decay biases and one-dimensional parameters."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one below it; 1 for none."""
    clip_grad: float | None = None
    """Largest global norm of the gradient; none by default."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimiser, such as `eps` or `betas`."""


@dataclass
class ScheduleSettings:
    """Cosine schedule with linear warm-up, stepped at every update."""

    warmup_epochs: float = 0.0
    """Length of the warm-up, in epochs; a run whose length `updates` sets keeps its share."""
    warmup_lr: float = 0.0
    """Learning rate that the warm-up starts from."""
    min_lr: float = 0.0
    """Learning rate that the cosine ends at."""
    cooldown_epochs: float = 0.0
    """Epochs at `min_lr` after `epochs`."""


@dataclass
class PositionSettings:
    """How DCLS positions learn (arXiv 2112.03740 and its training code)."""

    lr_scale: float = 5.0
    """Learning rate of P and SIG, in units of the schedule's value."""
    repulsion: bool = False
    """Add the square of the repulsive loss, which keeps elements of a kernel a pixel apart."""
    repulsion_from_epoch: int = 21
    """First epoch, counted from 0, with the repulsive loss; before it, it is not computed."""


@dataclass
class EmaSettings:
    """Exponential moving average of the weights."""

    decay: float | None = None
    """Decay per update; none by default."""
    warmup: bool = True
    """Start with small decays, min(decay, (1 + t) / (10 + t)), so that short runs are not stuck at the start."""


@dataclass
class SnapshotSettings:
    """Checkpoints to resume from."""

    every_updates: int | None = None
    """Write one every so many updates."""
    every_minutes: float | None = 30.0
    """Write one after so many minutes."""
    keep_last: int = 2
    """How many of the newest stay."""
    keep_every: int | None = None
    """Those at a multiple of so many updates stay as well."""


@dataclass
class LogSettings:
    """What is reported, and how often."""

    every: int = 50
    """Updates between two log lines; only there does the host wait for the device."""
    validate_every: float = 1.0
    """Epochs between two validations; there is always one at the end."""
    pictures_every: float = 10.0
    """Epochs between two sets of TensorBoard charts and histograms; there is always one at both ends."""
    tensorboard: bool = True
    """Write TensorBoard events."""


@dataclass
class Settings:
    """A run."""

    recipe: str | None = None
    """Name of a file in recipes/, without .yaml."""
    name: str | None = None
    """Name of the run and of the published checkpoint; by default that of the recipe."""
    model: str = ""
    """A name of the zoo, or timm:ARCHITECTURE."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the architecture, such as drop_path_rate."""
    dcls: dict[str, Any] = field(default_factory=dict)
    """Changes to the model's DCLS surgery, such as kernel_count, rule (also a pattern for names of layers, or a list of
    names) or init; see common.dcls_spec.DclsSpec."""
    pretrained: bool = False
    """Start from the plain model's published weights. Replaced layers start fresh, or with `dcls.init=preserve` from
    the function of the plain ones."""
    init_from: str | None = None
    """The same from a weight file or a checkpoint folder of the plain model."""
    num_classes: int | None = None
    """Outputs; by default the classes of the data. Where all class folders are named by WordNet ids of ImageNet's
    classes, even of a few, labels are ImageNet's and there are 1000 outputs."""
    seed: int = 0
    """Of initial values, order, augmentation and mixing."""
    epochs: float = 300
    """Length of the run in passes over the data."""
    updates: int | None = None
    """Length of the run in updates, instead of epochs; the schedule is fitted to it."""
    global_batch: int = 1024
    """Images per update, over all devices. Fixed by the recipe, as the learning rate belongs to it."""
    batch_size: int = 128
    """Images that a device takes at once; accumulation is derived from it."""
    eval_batch_size: int | None = None
    """The same in validation; by default batch_size."""
    precision: str = "fp32"
    """`fp32`, `bf16` or `fp16`."""
    compile: bool = False
    """Compile the model with torch.compile."""
    channels_last: bool = True
    """Memory layout NHWC."""
    depthwise: str = "auto"
    """How depthwise DCLS layers are computed: `auto`, `conv2d` or `triton` (see `common.surgery.set_depthwise`)."""
    threads: int | None = None
    """Threads of torch on the CPU; by default torch's own choice."""
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    positions: PositionSettings = field(default_factory=PositionSettings)
    ema: EmaSettings = field(default_factory=EmaSettings)
    snapshots: SnapshotSettings = field(default_factory=SnapshotSettings)
    log: LogSettings = field(default_factory=LogSettings)
    runs_dir: str = "runs"
    """Folder of all runs."""
    run_dir: str | None = None
    """Folder of this run; by default runs_dir/name/TIME."""
    resume: str = "none"
    """`none`, `auto` (the newest run of this name that left a snapshot, else a new run), or the path of a run or
    snapshot."""
    publish: bool = True
    """Write the checkpoint folder at the end."""
    publish_weights: str = "raw"
    """Which weights are published: `raw` or `ema`."""
    checkpoints_dir: str = "checkpoints"
    """Folder of published checkpoints."""
    overwrite: bool = False
    """Replace a published checkpoint of the same name that another run made. With the path of a snapshot as `resume`,
    also remove the snapshots after it."""
    license: str = "MIT"
    """Licence of the published weights."""
    smoke: bool = False
    """Two updates on generated data at small size, to see that a recipe runs."""
