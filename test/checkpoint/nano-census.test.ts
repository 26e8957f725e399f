import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import { takeAll } from '../helpers/micro-checkpoint.js'
import { f32, folderWith, headerOf, type TestTensor, zeros } from '../helpers/safetensors.js'

// The NVFP4 release of Nemotron-3-Nano-30B-A3B, tensor by tensor, as shared/docs/model.md section 3.1 lists it. The files
// are sparse: 19 GB long, a few megabytes on disk.
const pattern = 'MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME'
const hidden = 2688
const config = {
  model_type: 'nemotron_h',
  num_hidden_layers: 52,
  hybrid_override_pattern: pattern,
  hidden_size: hidden,
  vocab_size: 131072,
  max_position_embeddings: 262144,
  tie_word_embeddings: false,
  layer_norm_epsilon: 1e-5,
  norm_eps: 1e-5,
  mamba_num_heads: 64,
  mamba_head_dim: 64,
  ssm_state_size: 128,
  n_groups: 8,
  conv_kernel: 4,
  expand: 2,
  use_conv_bias: true,
  use_bias: false,
  mamba_proj_bias: false,
  mamba_hidden_act: 'silu',
  num_attention_heads: 32,
  num_key_value_heads: 2,
  head_dim: 128,
  attention_bias: false,
  sliding_window: null,
  rope_theta: 10000,
  partial_rotary_factor: 1,
  intermediate_size: 1856,
  moe_intermediate_size: 1856,
  moe_shared_expert_intermediate_size: 3712,
  n_routed_experts: 128,
  num_experts_per_tok: 6,
  n_shared_experts: 1,
  n_group: 1,
  topk_group: 1,
  norm_topk_prob: true,
  routed_scaling_factor: 2.5,
  mlp_hidden_act: 'relu2',
  mlp_bias: false,
  bos_token_id: 1,
  eos_token_id: 2,
  pad_token_id: 0,
}

const tensors: Record<string, TestTensor> = {}
const excluded = ['lm_head']

function add(name: string, tensor: TestTensor): void {
  tensors[name] = tensor
}

function plain(module: string, ...shape: number[]): void {
  add(`${module}.weight`, zeros('BF16', ...shape))
}

function nvfp4(module: string, out: number, inputs: number): void {
  add(`${module}.weight`, zeros('U8', out, inputs / 2))
  add(`${module}.weight_scale`, zeros('F8_E4M3', out, inputs / 16))
  for (const name of ['weight_scale_2', 'input_scale']) add(`${module}.${name}`, f32([1]))
}

function addMamba(mixer: string, beforeAttention: boolean): void {
  for (const name of ['A_log', 'D', 'dt_bias']) add(`${mixer}.${name}`, zeros('BF16', 64))
  plain(`${mixer}.conv1d`, 6144, 1, 4)
  add(`${mixer}.conv1d.bias`, zeros('BF16', 6144))
  plain(`${mixer}.norm`, 4096)
  const linear = beforeAttention ? plain : nvfp4
  linear(`${mixer}.in_proj`, 10304, hidden)
  linear(`${mixer}.out_proj`, hidden, 4096)
  excluded.push(`${mixer}.conv1d`, ...(beforeAttention ? [`${mixer}.in_proj`, `${mixer}.out_proj`] : []))
}

function addMoe(mixer: string): void {
  add(`${mixer}.gate.weight`, zeros('F32', 128, hidden))
  add(`${mixer}.gate.e_score_correction_bias`, zeros('F32', 128))
  for (let expert = 0; expert < 128; expert++) {
    nvfp4(`${mixer}.experts.${expert}.up_proj`, 1856, hidden)
    nvfp4(`${mixer}.experts.${expert}.down_proj`, hidden, 1856)
  }
  nvfp4(`${mixer}.shared_experts.up_proj`, 3712, hidden)
  nvfp4(`${mixer}.shared_experts.down_proj`, hidden, 3712)
}

function addAttention(mixer: string): void {
  for (const [name, out] of [['q', 4096] as const, ['k', 256] as const, ['v', 256] as const]) {
    plain(`${mixer}.${name}_proj`, out, hidden)
  }
  plain(`${mixer}.o_proj`, hidden, 4096)
  excluded.push(...['q', 'k', 'v', 'o'].map((name) => `${mixer}.${name}_proj`))
}

plain('backbone.embeddings', 131072, hidden)
plain('lm_head', 131072, hidden)
plain('backbone.norm_f', hidden)
for (const [layer, letter] of [...pattern].entries()) {
  plain(`backbone.layers.${layer}.norm`, hidden)
  const mixer = `backbone.layers.${layer}.mixer`
  if (letter === 'M') addMamba(mixer, pattern[layer + 1] === '*')
  else if (letter === 'E') addMoe(mixer)
  else addAttention(mixer)
}

/** Writes a file whose data is a hole but for the scalars. */
async function writeSparse(file: string, part: Readonly<Record<string, TestTensor>>): Promise<void> {
  const header = headerOf(part)
  const text = new TextEncoder().encode(JSON.stringify(header))
  const length = new Uint8Array(8)
  new DataView(length.buffer).setBigUint64(0, BigInt(text.length), true)
  const handle = await open(file, 'w')
  await handle.write(length, 0, 8, 0)
  await handle.write(text, 0, text.length, 8)
  let end = 0
  for (const [name, tensor] of Object.entries(part)) {
    const [start = 0, stop = 0] = (header[name] as { data_offsets: number[] }).data_offsets
    if (tensor.data) await handle.write(tensor.data, 0, tensor.data.length, 8 + text.length + start)
    end = Math.max(end, stop)
  }
  await handle.truncate(8 + text.length + end)
  await handle.close()
}

it('the Nano NVFP4 release opens: every name, shape, byte and parameter of its census', async () => {
  const names = Object.keys(tensors)
  const folder = await folderWith({
    'config.json': config,
    'hf_quant_config.json': {
      producer: { name: 'modelopt', version: '0.29.0' },
      quantization: { quant_algo: 'NVFP4', kv_cache_quant_algo: 'FP8', group_size: 16, exclude_modules: excluded },
    },
    'generation_config.json': { bos_token_id: 1, eos_token_id: [2, 11], do_sample: true, temperature: 1, top_p: 1 },
  })
  const perShard = Math.ceil(names.length / 5)
  for (let shard = 0; shard < 5; shard++) {
    const part = names.slice(shard * perShard, (shard + 1) * perShard)
    // As in the release, wide elements come first, so that the scalars lie together.
    const ordered = part.sort((a, b) => Number(tensors[b]?.dtype === 'F32') - Number(tensors[a]?.dtype === 'F32'))
    const file = join(folder, `model-0000${shard + 1}-of-00005.safetensors`)
    await writeSparse(file, Object.fromEntries(ordered.map((name) => [name, tensors[name] as TestTensor])))
  }
  expect(excluded).toHaveLength(60)

  const start = performance.now()
  const checkpoint = await Checkpoint.open(folder)
  const sources = takeAll(checkpoint)
  expect(performance.now() - start).toBeLessThan(10_000)

  expect(checkpoint.generation.stopIds).toEqual([2, 11])
  expect([...sources.values()].filter((source) => source.format === 'nvfp4')).toHaveLength(5968)
  const { summary } = checkpoint
  expect(summary).toMatchObject({ files: 5, tensors: 24_147, parameters: 31_577_940_288 })
  const bytes = Object.values(summary.formats).reduce((sum, format) => sum + format.bytes, 0)
  expect(bytes).toBe(19_339_781_632)
})
