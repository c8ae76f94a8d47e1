"""What the tests of the model zoo expect beyond its manifest, as data."""

from __future__ import annotations

MOST_NODES = 30  # of a dynamic Llama with two layers, Constant nodes aside
MOST_NODES_OF_BLOCKS = 16  # the same at level "block"

# Models whose ONNX Runtime session must not optimise, since ONNX Runtime's own optimisations change their result.
UNOPTIMISED = {
    "genai_018_int4_cpu_qdq": "dequantised products become MatMulNBits, which rounds activations to int8",
    "nm_norm_eps_vector": "SimplifiedLayerNormFusion takes the first element of the vector epsilon",
}

# Models that give other results each time they run: they have to load and run, there is nothing to compare.
RANDOM = {"snap_ee_bug_2of3_s": "Dropout in training mode"}

# Near misses: how often each counted thing may be fused where the manifest says it in words.
BOUNDS = {
    ("nm_att_add_twice", "attention"): (0, 1),
    ("nm_att_scale_other", "attention"): (0, 1),
    ("nm_att_softcap", "attention"): (0, 1),
    ("nm_cast_roundtrip_fp16_in_fp32", "rmsnorm"): (1, 1),  # the other norm has no casts
    ("nm_cast_roundtrip_fp16_in_fp32", "residual_add_norm"): (0, 1),
    ("nm_gqa_repeat_tile_order", "attention"): (0, 1),
    ("nm_mlp_gate_two_consumers", "gated_mlp"): (0, 1),
    ("nm_mlp_prod_is_output", "gated_mlp"): (0, 1),
    ("nm_mlp_sigmoid_is_output", "gated_mlp"): (0, 1),
    ("nm_norm_pow_shared", "rmsnorm"): (1, 2),
    ("nm_norm_weight_scalar", "rmsnorm"): (0, 2),
    ("nm_norm_weight_scalar", "residual_add_norm"): (0, 1),
    ("nm_past_order_swapped", "attention"): (0, 1),
    ("nm_residual_broadcast", "residual_add_norm"): (0, 1),
    ("nm_rope_cossin_input", "rope_applications"): (0, 2),
    ("nm_rope_q_only", "rope_applications"): (1, 1),
    ("nm_rope_sign", "rope_applications"): (0, 2),
    ("nm_rope_swapcs", "rope_applications"): (0, 0),
    ("nm_att_shared_qk_weight", "rope_applications"): (1, 1),  # q and k are the same tensor: rotated once
}

# Near misses that are not fused: the fusion whose explanation names the cause, and words it must have.
CAUSES = {
    "nm_att_softmax_axis1": ("attention", "Softmax.axis: expected -1, found 1"),
    "nm_cast_roundtrip_fp16_in_fp32": ("rms_norm", "found Cast"),
    "nm_mlp_add_up": ("swiglu", "expected Mul, found Add"),
    "nm_mlp_gate_two_consumers": ("gated_mlp", "is also used by ReduceSum"),
    "nm_mlp_prod_is_output": ("gated_mlp", "is also a graph output"),
    "nm_mlp_sig_other_lin": ("swiglu", "expected 'matmul_138'"),
    "nm_mlp_sigmoid_is_output": ("gated_mlp", "is also used by Sigmoid"),
    "nm_norm_eps_input": ("rms_norm", "eps: expected constant scalar, found 'eps'"),
    "nm_norm_eps_vector": ("rms_norm", "eps: expected constant scalar, found 'c_1' float32[8, 1]"),
    "nm_norm_other_tensor": ("rms_norm", "expected 'x' float32[2, 8, 64], found 'y' float32[2, 8, 64]"),
    "nm_norm_weight_2d": ("rms_norm", "rank of weight: expected 1, found 2"),
    "nm_norm_weight_scalar": ("rms_norm", "rank of weight: expected 1, found 0"),
    "nm_residual_broadcast": ("skip_rms_norm", "the sum broadcasts"),
    "nm_rope_noneg": ("rotary_embedding", "expected Neg, found Slice"),
    "nm_rope_q_only": ("rotary_embedding", "expected Neg, found Slice"),
    "nm_rope_sign": ("rotary_embedding", "expected Neg, found Slice"),
    "nm_rope_swapcs": ("rotary_embedding", "they turn backwards"),
}

# Models where verification refuses a match: without it the result differs.
REFUSED_BY_VERIFICATION: dict[str, str] = {}

# Dynamic Llamas with more nodes than MOST_NODES, and why.
_STACKED = "the caches of all layers are one tensor, the mask and the tables are cut at a position"
_FOLDED = "the mask is repeated into [B*N, S, L] in another order than its batches, which is kept"
_ISLANDS = "norms, residuals and output projections are float32 in a float16 model: the export casts nine times"
MORE_NODES: dict[str, tuple[int, str]] = {
    "optimum_010_tf457_t213_mha_past_fp16": (33, _ISLANDS),
    "tf523_t213_ts_mha_past_sdpa_op17_dyn_fp16": (33, _ISLANDS),
    "meta_t20_gqa_op16_fp32": (39, _STACKED),
    "meta_t20_mha_msnorm_op16_fp32": (39, _STACKED),
    "meta_t20_mha_op16_fp32": (39, _STACKED),
    "meta_t213_gqa_op16_fp16": (39, _STACKED),
    "meta_t213_gqa_op16_fp32": (39, _STACKED),
    "meta_t213_mha_noupcast_op16_fp16": (39, _STACKED),
    "meta_t213_mha_op16_fp16": (39, _STACKED),
    "meta_t213_mha_op16_fp32": (39, _STACKED),
    "meta_t213_mha_split_op16_fp32": (39, _STACKED),
    "meta_t20_mha_3d_op16_fp32": (52, _FOLDED),
    "meta_t213_mha_3d_op16_fp16": (52, _FOLDED),
    "meta_t213_mha_3d_op16_fp32": (52, _FOLDED),
    "post_meta_t20_mha_3d_fun_op16_fp32__ortext": (50, _FOLDED),
    "post_meta_t20_mha_op16_fp32__ortext": (41, _STACKED),
}

# One or two of each exporter and interface, which are tried at many sizes.
ACCEPTANCE = (
    "course_exact_tf439_t241_script_mixed_small_eager_v18",
    "course_tf523_t213_script_rnd_eager_dyn_v18",
    "meta_t213_mha_op16_fp32",
    "optimum_010_tf457_t213_mha_past_fp32",
    "tf446_t241_ts_mha_past_eager_op14_dyn",
    "tf523_t213_dyn_gqa_past_sdpa_op18_dyn",
    "tf523_t213_dyn_mha_past_eager_op18_dyn_fp16",
    "tf523_t213_ts_gqa_past_sdpa_op17_dyn",
)
