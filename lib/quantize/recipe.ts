import type { NemotronHConfig } from '../models/config.js'

/** A linear module of a model, or one expert of many. */
export interface QuantizableModule {
  /** `backbone.layers.N.mixer.…`; for experts the prefix and the projection. */
  readonly module: string
  readonly experts?: { prefix: string; projection: 'up_proj' | 'down_proj'; count: number }
  readonly out: number
  readonly in: number
}

/** What a recipe does with a model: modules to quantise, and the exclude list that ModelOpt's sidecar states. */
export interface QuantizationPlan {
  readonly quantized: readonly QuantizableModule[]
  readonly excluded: readonly string[]
}

const blockInputs = 16

/**
 * The selective recipe of the Nano NVFP4 release: attention, the Mamba layers directly in front of attention, embeddings, head,
 * convolutions and router stay in high precision, every other projection becomes NVFP4. So does not, and is listed as excluded,
 * a projection whose inputs do not divide into blocks of 16.
 */
export function nanoRecipe(config: NemotronHConfig): QuantizationPlan {
  const quantized: QuantizableModule[] = []
  const excluded: string[] = ['lm_head']
  const take = (candidate: QuantizableModule) => {
    if (candidate.in % blockInputs === 0) quantized.push(candidate)
    else if (candidate.experts) excluded.push(`${candidate.experts.prefix}.*.${candidate.experts.projection}`)
    else excluded.push(candidate.module)
  }
  const hidden = config.hiddenSize
  for (const [index, kind] of config.layers.entries()) {
    const mixer = `backbone.layers.${index}.mixer`
    if (kind === 'mamba') {
      const { heads, headDim, groups, stateSize } = config.mamba
      const inner = heads * headDim
      const projections = [
        { module: `${mixer}.in_proj`, out: 2 * inner + 2 * groups * stateSize + heads, in: hidden },
        { module: `${mixer}.out_proj`, out: hidden, in: inner },
      ]
      if (config.layers[index + 1] === 'attention') excluded.push(...projections.map(({ module }) => module))
      else projections.forEach(take)
      excluded.push(`${mixer}.conv1d`)
    } else if (kind === 'attention') {
      excluded.push(...['q_proj', 'k_proj', 'v_proj', 'o_proj'].map((name) => `${mixer}.${name}`))
    } else if (kind === 'moe') {
      const { experts: count, width, sharedWidth } = config.moe
      const prefix = `${mixer}.experts`
      take({ module: `${prefix}.up_proj`, experts: { prefix, projection: 'up_proj', count }, out: width, in: hidden })
      take({
        module: `${prefix}.down_proj`,
        experts: { prefix, projection: 'down_proj', count },
        out: hidden,
        in: width,
      })
      if (sharedWidth > 0) {
        take({ module: `${mixer}.shared_experts.up_proj`, out: sharedWidth, in: hidden })
        take({ module: `${mixer}.shared_experts.down_proj`, out: hidden, in: sharedWidth })
      }
    } else {
      take({ module: `${mixer}.up_proj`, out: config.mlp.width, in: hidden })
      take({ module: `${mixer}.down_proj`, out: hidden, in: config.mlp.width })
    }
  }
  return { quantized, excluded }
}
