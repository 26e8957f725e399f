import type { NemotronHConfig } from '../models/config.js'
import type { TensorStore } from './tensor-store.js'

const attention = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
const projections = ['up_proj', 'down_proj']

/**
 * Whether a linear module has a bias. Where all implementations agree the config alone decides, so that a bias that is
 * missing or not declared is an error. transformers 5 builds none in attention and routed experts, whatever
 * `attention_bias` and `mlp_bias` say, and NVIDIA's own code does: there a declared bias may be absent, but only from all
 * modules of the layer at once.
 *
 * @param module canonical name; for stacked experts that of the stack.
 */
export function hasBias(store: TensorStore, config: NemotronHConfig, module: string): boolean {
  const [, mixer = '', path = ''] = /^(backbone\.layers\.\d+\.mixer)\.(.+)$/.exec(module) ?? []
  const stored = (modules: readonly string[]) =>
    modules.some((name) => store.find(`${mixer}.${name}.bias`) !== undefined)
  if (path === 'in_proj' || path === 'out_proj') return config.mamba.projBias
  if (attention.includes(path)) return config.attention.bias && stored(attention)
  if (projections.includes(path)) return config.mlp.bias
  if (path.startsWith('shared_experts.')) return config.moe.bias
  if (!path.startsWith('experts.') || !config.moe.bias) return false
  const experts = Array.from({ length: config.moe.experts }, (_, expert) => `experts.${expert}`)
  return stored(['experts', ...experts].flatMap((holder) => projections.map((name) => `${holder}.${name}`)))
}
