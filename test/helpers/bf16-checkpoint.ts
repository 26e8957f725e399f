import { readQuantization } from '../../lib/checkpoint/quantization.js'
import { parseNemotronHConfig } from '../../lib/models/config.js'
import { planTensors } from '../../lib/synthetic/plan.js'
import { presets } from '../../lib/synthetic/presets.js'
import { buildSafetensors, folderWith, type TestTensor } from './safetensors.js'

/** One layer each of Mamba, attention and mixture of experts. Its linear modules read 128 inputs, but `o_proj` reads 64. */
const json = {
  ...presets['nano-micro'],
  hybrid_override_pattern: 'M*E',
  num_hidden_layers: 3,
  hidden_size: 128,
  vocab_size: 256,
  mamba_num_heads: 4,
  num_attention_heads: 4,
  head_dim: 16,
  n_routed_experts: 4,
  num_experts_per_tok: 2,
  moe_intermediate_size: 64,
  moe_shared_expert_intermediate_size: 128,
}

/** Every eighth row of the head has an element whose exponent is far above those of all others. */
export const outlierRows = 8
const outliers = json.vocab_size / outlierRows

/** Linear modules as they are fused, in the order of their layers, with their elements. */
export const bf16Linears = { inProj: 388 * 128, outProj: 128 * 128, qkv: 128 * 128, oProj: 128 * 64, head: 256 * 128 }

// Synthetic models have layers that add little, for the sake of 52 of them: here their errors are to be seen.
const toResidual = /(out|o|down)_proj\.weight$/
const times64 = 6 << 7

/** Writes a checkpoint with random BF16 weights in all linear modules. The folder is removed when the current test ends. */
export function bf16Checkpoint(): Promise<string> {
  const config = parseNemotronHConfig(json, 'config.json', readQuantization({ json, file: 'config.json' }))
  let state = 1
  const draw = (entries: Uint16Array | Uint32Array) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return entries[Math.floor((state / 2 ** 32) * entries.length)] as number
  }
  const tensors: Record<string, TestTensor> = {}
  for (const { name, dtype, shape, table } of planTensors(config, 0.5)) {
    const { buffer } = Uint8Array.from(table.entries)
    const entries = dtype === 'BF16' ? new Uint16Array(buffer) : new Uint32Array(buffer)
    const more = toResidual.test(name) ? times64 : 0
    const size = shape.reduce((product, extent) => product * extent, 1)
    const data = dtype === 'BF16' ? new Uint16Array(size) : new Uint32Array(size)
    for (let i = 0; i < size; i++) data[i] = draw(entries) + more
    if (name === 'lm_head.weight') {
      // 4096
      for (let i = 0; i < outliers; i++) data[i * outlierRows * json.hidden_size + i] = 0x4580
    }
    tensors[name] = { dtype, shape, data: new Uint8Array(data.buffer) }
  }
  return folderWith({ 'config.json': json, 'model.safetensors': buildSafetensors(tensors) })
}
