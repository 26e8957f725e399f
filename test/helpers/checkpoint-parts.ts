import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import { microConfig, microTensors, type StoredFormat, storedLinear, takeAll } from './micro-checkpoint.js'
import { buildSafetensors, folderWith, type TestTensor } from './safetensors.js'

export type Tensors = Record<string, TestTensor>
export interface Parts {
  config?: object
  tensors?: Tensors
  files?: Record<string, string | object>
}

export async function folderOf({ config = {}, tensors = microTensors(), files = {} }: Parts = {}): Promise<string> {
  return folderWith({
    'config.json': { ...microConfig, ...config },
    'model.safetensors': buildSafetensors(tensors),
    ...files,
  })
}

export const open = async (parts?: Parts) => Checkpoint.open(await folderOf(parts))
export const load = async (parts?: Parts) => takeAll(await open(parts))

/** All tensors but those whose name the expression matches. */
export const without = (tensors: Tensors, expression: RegExp) =>
  Object.fromEntries(Object.entries(tensors).filter(([name]) => !expression.test(name)))

export const renamed = (tensors: Tensors, from: RegExp, to: string) =>
  Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name.replace(from, to), tensor]))

export const modelopt = (algorithm: string, changes: object = {}) => ({
  'hf_quant_config.json': { quantization: { quant_algo: algorithm, exclude_modules: ['lm_head'], ...changes } },
})
export const compressed = (format: string, weights: object) => ({
  quantization_config: {
    quant_method: 'compressed-tensors',
    format,
    config_groups: { group_0: { targets: ['Linear'], weights: { type: 'float', ...weights } } },
    ignore: ['lm_head'],
  },
})
export const quantized = (format: StoredFormat) => microTensors((module) => (module === 'lm_head' ? 'bf16' : format))
export const nvfp4Packed = compressed('nvfp4-pack-quantized', { num_bits: 4, group_size: 16, strategy: 'tensor_group' })

export const inProj = 'backbone.layers.0.mixer.in_proj'
export const experts = 'backbone.layers.1.mixer.experts'

/** The micro checkpoint with the experts of its layer as stacks. */
export function stacked(format: StoredFormat, rename: (name: string) => string = (name) => name): Tensors {
  const others = without(quantized(format), /\.experts\.\d/)
  const up = storedLinear(`${experts}.up_proj`, 16, 32, format, [4])
  const down = storedLinear(`${experts}.down_proj`, 32, 16, format, [4])
  const stacks = Object.entries({ ...up, ...down }).map(([name, tensor]) => [rename(name), tensor] as const)
  return { ...others, ...Object.fromEntries(stacks) }
}
