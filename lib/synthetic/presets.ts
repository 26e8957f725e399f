import type { JsonObject } from '../checkpoint/config-json.js'

/** `config.json` of the NVFP4 release of Nemotron-3-Nano-30B-A3B, without the fields that name Python code. */
const nano: JsonObject = {
  architectures: ['NemotronHForCausalLM'],
  model_type: 'nemotron_h',
  attention_bias: false,
  attention_dropout: 0,
  bos_token_id: 1,
  chunk_size: 128,
  conv_kernel: 4,
  eos_token_id: 2,
  expand: 2,
  head_dim: 128,
  hidden_dropout: 0,
  hidden_size: 2688,
  hybrid_override_pattern: 'MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME',
  initializer_range: 0.02,
  intermediate_size: 1856,
  layer_norm_epsilon: 1e-5,
  mamba_head_dim: 64,
  mamba_hidden_act: 'silu',
  mamba_num_heads: 64,
  mamba_proj_bias: false,
  mamba_ssm_cache_dtype: 'float32',
  max_position_embeddings: 262144,
  mlp_bias: false,
  mlp_hidden_act: 'relu2',
  moe_intermediate_size: 1856,
  moe_shared_expert_intermediate_size: 3712,
  n_group: 1,
  n_groups: 8,
  n_routed_experts: 128,
  n_shared_experts: 1,
  norm_eps: 1e-5,
  norm_topk_prob: true,
  num_attention_heads: 32,
  num_experts_per_tok: 6,
  num_hidden_layers: 52,
  num_key_value_heads: 2,
  num_logits_to_keep: 1,
  pad_token_id: 0,
  partial_rotary_factor: 1,
  rescale_prenorm_residual: true,
  residual_in_fp32: false,
  rope_theta: 10000,
  routed_scaling_factor: 2.5,
  sliding_window: null,
  ssm_state_size: 128,
  tie_word_embeddings: false,
  time_step_floor: 0.0001,
  time_step_max: 0.1,
  time_step_min: 0.001,
  topk_group: 1,
  torch_dtype: 'bfloat16',
  transformers_version: '4.53.2',
  use_bias: false,
  use_cache: true,
  use_conv_bias: true,
  use_mamba_kernels: true,
  vocab_size: 131072,
}

/** A model by pattern and the fields in which it differs from the release. */
function like(pattern: string, fields: JsonObject): JsonObject {
  return { ...nano, ...fields, hybrid_override_pattern: pattern, num_hidden_layers: pattern.length }
}

/**
 * Models that need no download, by name.
 *
 * - `nano-30b`: shapes and formats of the NVFP4 release, 19.3 GB
 * - `nano-2b`: its layers in full width, but 12 of them, 32 experts each and a quarter of the vocabulary: 1.6 GB
 * - `nano-micro`: the same family of shapes in 4 MB, for tests
 */
export const presets: Readonly<Record<string, JsonObject>> = {
  'nano-30b': nano,
  'nano-2b': like('MEMEM*EMEM*E', { n_routed_experts: 32, vocab_size: 32768 }),
  'nano-micro': like('MEMEM*EME', {
    hidden_size: 256,
    vocab_size: 1024,
    mamba_num_heads: 8,
    mamba_head_dim: 32,
    ssm_state_size: 32,
    n_groups: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 32,
    n_routed_experts: 16,
    num_experts_per_tok: 4,
    intermediate_size: 96,
    moe_intermediate_size: 96,
    moe_shared_expert_intermediate_size: 192,
    max_position_embeddings: 4096,
  }),
}

/** `generation_config.json` of the release. */
export const generationConfig: JsonObject = { bos_token_id: 1, do_sample: true, eos_token_id: [2, 11], pad_token_id: 0 }
