"""The arguments of an architecture that a checkpoint, a recipe or a command line may give (`model_args`).

Numbers and a few words, by name: none of them names a file, a weight or a piece of code, so a stranger's checkpoint
can ask timm for nothing but a shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.kinds import FLAG, NOTHING, Kind, check_table, either, listed, number, one_of, whole

_LONGEST = 64  # entries of a list: one per stage


def _of_stages(kind: Kind) -> Kind:
    """One value, or one per stage, or none where the architecture chooses."""
    return either(kind, listed(kind, 1, _LONGEST), NOTHING)


_KINDS: dict[Kind, str] = {
    number(
        0, 1
    ): "drop_rate drop_path_rate attn_drop_rate proj_drop_rate pos_drop_rate patch_drop_rate drop_block_rate",
    _of_stages(number(0, 1000)): "mlp_ratio mlp_ratios expand_ratio head_init_scale init_values ls_init_value "
    "layer_scale layer_scale_init_value layer_scale_init_values res_scale_init_values norm_eps bn_eps bn_momentum",
    _of_stages(whole(1, 256)): "depth depths layers patch_size kernel_size kernel_sizes num_heads num_kv_heads "
    "window_size head_dim cardinality stem_size",
    _of_stages(whole(1, 2**14)): "width widths dims embed_dim embed_dims channels num_features head_hidden_size "
    "stem_width base_width base_dim",
    _of_stages(whole(1, 2048)): "img_size",
    whole(0, 256): "reg_tokens",
    FLAG: "qkv_bias qk_norm class_token no_embed_class pre_norm final_norm fc_norm dynamic_img_size dynamic_img_pad "
    "strict_img_size zero_init_last conv_bias conv_mlp use_grn head_norm_first avg_down distilled",
    one_of("", "same", "valid"): "pad_type",
    one_of("", "avg", "max", "avgmax", "catavgmax", "token", "map"): "global_pool",
    Kind("8, 16 or 32", lambda v: type(v) is int and v in (8, 16, 32)): "output_stride",
}
ARGUMENTS: dict[str, Kind] = {name: kind for kind, names in _KINDS.items() for name in names.split()}
"""What each argument must be, by name."""


def check_arguments(arguments: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that are not on the list, or not of their kind.

    Args:
        arguments: by name.
        where: who gives them, for the message.

    Raises:
        UserError: the first that may not be given, with those like it.
    """
    check_table(arguments, ARGUMENTS, where, "model_args.")
