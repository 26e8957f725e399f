import { type Checkpoint, floatDtypes, type LinearSource } from '../../lib/checkpoint/checkpoint.js'
import type { NemotronHConfig } from '../../lib/models/config.js'
import { f32, type TestTensor, zeros } from './safetensors.js'

/** A config.json with one layer of each kind, as transformers 5 saves it, with some sizes that differ from all others. */
export const microConfig = {
  architectures: ['NemotronHForCausalLM'],
  model_type: 'nemotron_h',
  vocab_size: 64,
  hidden_size: 32,
  layers_block_type: ['linear_attention', 'moe', 'full_attention', 'mlp'],
  mtp_layers_block_type: ['full_attention', 'moe'],
  num_nextn_predict_layers: 0,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  head_dim: 16,
  mamba_num_heads: 6,
  mamba_head_dim: 16,
  n_groups: 3,
  ssm_state_size: 8,
  conv_kernel: 4,
  use_conv_bias: true,
  use_bias: false,
  mlp_bias: false,
  attention_bias: false,
  sliding_window: null,
  moe_latent_size: null,
  mamba_hidden_act: 'silu',
  mlp_hidden_act: 'relu2',
  n_routed_experts: 4,
  n_shared_experts: 1,
  num_experts_per_tok: 2,
  moe_intermediate_size: 16,
  moe_shared_expert_intermediate_size: 48,
  intermediate_size: 80,
  n_group: 1,
  topk_group: 1,
  norm_topk_prob: true,
  routed_scaling_factor: 2.5,
  layer_norm_epsilon: 1e-5,
  time_step_limit: [0, { __float__: 'Infinity' }],
  max_position_embeddings: 512,
  tie_word_embeddings: false,
  bos_token_id: 1,
  eos_token_id: [2, 11],
}

/** Linear modules of {@link microConfig}: out and in. */
export const microLinears: Readonly<Record<string, readonly [number, number]>> = {
  'backbone.layers.0.mixer.in_proj': [96 + (96 + 2 * 3 * 8) + 6, 32],
  'backbone.layers.0.mixer.out_proj': [32, 96],
  ...Object.fromEntries(
    Array.from({ length: 4 }, (_, expert) => [
      [`backbone.layers.1.mixer.experts.${expert}.up_proj`, [16, 32] as const],
      [`backbone.layers.1.mixer.experts.${expert}.down_proj`, [32, 16] as const],
    ]).flat(),
  ),
  'backbone.layers.1.mixer.shared_experts.up_proj': [48, 32],
  'backbone.layers.1.mixer.shared_experts.down_proj': [32, 48],
  'backbone.layers.2.mixer.q_proj': [96, 32],
  'backbone.layers.2.mixer.k_proj': [32, 32],
  'backbone.layers.2.mixer.v_proj': [32, 32],
  'backbone.layers.2.mixer.o_proj': [32, 96],
  'backbone.layers.3.mixer.up_proj': [80, 32],
  'backbone.layers.3.mixer.down_proj': [32, 80],
  lm_head: [64, 32],
}

/** How a linear module may be stored in a micro checkpoint. */
export type StoredFormat = 'bf16' | 'nvfp4' | 'nvfp4-packed' | 'fp8' | 'fp8-channel'

/** The tensors of a linear module, `lead` in front of every shape. */
export function storedLinear(
  module: string,
  out: number,
  inputs: number,
  format: StoredFormat,
  lead: readonly number[] = [],
): Record<string, TestTensor> {
  const shape = (...sizes: number[]) => [...lead, ...sizes]
  const scales = (value: number, own: readonly number[]) =>
    f32(new Array(lead[0] ?? 1).fill(value), lead.length > 0 ? lead : own)
  const codes = zeros('U8', ...shape(out, inputs / 2))
  const blocks = { [`${module}.weight_scale`]: zeros('F8_E4M3', ...shape(out, inputs / 16)) }
  if (format === 'nvfp4') {
    const numbers = { [`${module}.weight_scale_2`]: scales(0.25, []), [`${module}.input_scale`]: scales(0.5, []) }
    return { [`${module}.weight`]: codes, ...blocks, ...numbers }
  }
  if (format === 'nvfp4-packed') {
    const own = { [`${module}.weight_global_scale`]: scales(4, [1]), [`${module}.input_global_scale`]: scales(2, [1]) }
    return { [`${module}.weight_packed`]: codes, ...blocks, ...own }
  }
  const weight = zeros(format === 'bf16' ? 'BF16' : 'F8_E4M3', ...shape(out, inputs))
  if (format === 'bf16') return { [`${module}.weight`]: weight }
  if (format === 'fp8-channel') {
    return { [`${module}.weight`]: weight, [`${module}.weight_scale`]: zeros('BF16', ...shape(out, 1)) }
  }
  const numbers = { [`${module}.weight_scale`]: scales(0.25, []), [`${module}.input_scale`]: scales(0.5, []) }
  return { [`${module}.weight`]: weight, ...numbers }
}

/** Every tensor of {@link microConfig} that is not a linear module. */
export function plainTensors(): Record<string, TestTensor> {
  const mamba = 'backbone.layers.0.mixer'
  return {
    'backbone.embeddings.weight': zeros('BF16', 64, 32),
    'backbone.norm_f.weight': zeros('BF16', 32),
    ...Object.fromEntries([0, 1, 2, 3].map((layer) => [`backbone.layers.${layer}.norm.weight`, zeros('BF16', 32)])),
    [`${mamba}.A_log`]: zeros('F32', 6),
    [`${mamba}.D`]: zeros('BF16', 6),
    [`${mamba}.dt_bias`]: zeros('F16', 6),
    [`${mamba}.conv1d.weight`]: zeros('BF16', 144, 1, 4),
    [`${mamba}.conv1d.bias`]: zeros('BF16', 144),
    [`${mamba}.norm.weight`]: zeros('BF16', 96),
    'backbone.layers.1.mixer.gate.weight': zeros('F32', 4, 32),
    'backbone.layers.1.mixer.gate.e_score_correction_bias': zeros('F32', 4),
  }
}

/** All tensors of a micro checkpoint; `format` decides module by module. */
export function microTensors(format: (module: string) => StoredFormat = () => 'bf16'): Record<string, TestTensor> {
  const linears = Object.entries(microLinears).map(([module, [out, inputs]]) =>
    storedLinear(module, out, inputs, format(module)),
  )
  return Object.assign(plainTensors(), ...linears)
}

/** Takes every tensor of a checkpoint as a loader does, and returns its linear modules by name. */
export function takeAll(checkpoint: Checkpoint): Map<string, LinearSource> {
  const { config } = checkpoint
  const sources = new Map<string, LinearSource>()
  const linear = (module: string, out: number, inputs: number) => {
    sources.set(module, checkpoint.linear(module, out, inputs))
  }
  const vector = (name: string, ...shape: number[]) => checkpoint.tensor(name, { shape, dtypes: floatDtypes })
  vector('backbone.embeddings.weight', config.vocabSize, config.hiddenSize)
  vector('backbone.norm_f.weight', config.hiddenSize)
  linear('lm_head', config.vocabSize, config.hiddenSize)
  for (const [index, kind] of config.layers.entries()) {
    vector(`backbone.layers.${index}.norm.weight`, config.hiddenSize)
    takers[kind](checkpoint, config, `backbone.layers.${index}.mixer`, index, { linear, vector, sources })
  }
  checkpoint.finish()
  return sources
}

interface Takers {
  linear(module: string, out: number, inputs: number): void
  vector(name: string, ...shape: number[]): unknown
  sources: Map<string, LinearSource>
}
type Taker = (checkpoint: Checkpoint, config: NemotronHConfig, mixer: string, index: number, takers: Takers) => void

const takers: Record<NemotronHConfig['layers'][number], Taker> = {
  mamba(_, { mamba, hiddenSize }, mixer, __, { linear, vector }) {
    const inner = mamba.heads * mamba.headDim
    const channels = inner + 2 * mamba.groups * mamba.stateSize
    linear(`${mixer}.in_proj`, inner + channels + mamba.heads, hiddenSize)
    linear(`${mixer}.out_proj`, hiddenSize, inner)
    for (const name of ['A_log', 'D', 'dt_bias']) vector(`${mixer}.${name}`, mamba.heads)
    vector(`${mixer}.norm.weight`, inner)
    vector(`${mixer}.conv1d.weight`, channels, 1, mamba.convKernel)
    if (mamba.convBias) vector(`${mixer}.conv1d.bias`, channels)
  },
  moe(checkpoint, { moe, hiddenSize }, mixer, _, { linear, vector, sources }) {
    vector(`${mixer}.gate.weight`, moe.experts, hiddenSize)
    vector(`${mixer}.gate.e_score_correction_bias`, moe.experts)
    const up = checkpoint.experts(`${mixer}.experts`, 'up_proj', moe.experts, moe.width, hiddenSize)
    const down = checkpoint.experts(`${mixer}.experts`, 'down_proj', moe.experts, hiddenSize, moe.width)
    for (const source of [...up, ...down]) sources.set(source.module, source)
    linear(`${mixer}.shared_experts.up_proj`, moe.sharedWidth, hiddenSize)
    linear(`${mixer}.shared_experts.down_proj`, hiddenSize, moe.sharedWidth)
  },
  attention(checkpoint, { attention, hiddenSize }, mixer, index, { linear }) {
    linear(`${mixer}.q_proj`, attention.heads * attention.headDim, hiddenSize)
    linear(`${mixer}.k_proj`, attention.kvHeads * attention.headDim, hiddenSize)
    linear(`${mixer}.v_proj`, attention.kvHeads * attention.headDim, hiddenSize)
    linear(`${mixer}.o_proj`, hiddenSize, attention.heads * attention.headDim)
    checkpoint.kvScales(index)
  },
  mlp(_, { mlp, hiddenSize }, mixer, __, { linear }) {
    linear(`${mixer}.up_proj`, mlp.width, hiddenSize)
    linear(`${mixer}.down_proj`, hiddenSize, mlp.width)
  },
}
