import type { NemotronHConfig } from '../models/config.js'
import {
  blockScales,
  codesWithMean,
  codeTable,
  constantTable,
  type DrawTable,
  normalQuantile,
  normalTable,
  quantileTable,
} from './tables.js'

/** One tensor of a synthetic checkpoint. */
export interface PlannedTensor {
  readonly name: string
  readonly dtype: 'BF16' | 'F32' | 'U8' | 'F8_E4M3'
  readonly shape: readonly number[]
  readonly table: DrawTable
  /** The value of a scale. */
  readonly value?: number
}

// An embedding row has unit root mean square, of which this part is the same number in every element. RMSNorm (of unit
// weights) keeps it, the layers hardly add to it, and so it is a direction that every `up` row can lean against.
const common = 0.5
// What a layer adds to the residual stream, against that unit: little, so that the direction survives 52 of them.
const branch = 0.02
const inputScale = 0.002

/**
 * Every tensor of a checkpoint of that shape, in the NVFP4 release's names and formats, with weights whose products stay near
 * unit size: projections into a layer keep the size of their input, projections out of it are small. Mamba's decay and time
 * step are drawn as its authors initialise them. `up` rows are shifted against the common direction of the embeddings by as much
 * as makes `reluZeros` of the hidden activations negative: with h = W x̂, and W's elements of mean m and root mean square r,
 * h / (r √K) is normal with mean common · √K · m / r and unit variance. Router rows sum to zero, so that the common direction
 * does not reach the choice of experts.
 */
export function planTensors(config: NemotronHConfig, reluZeros: number): PlannedTensor[] {
  return new Planner(config, reluZeros).plan()
}

class Planner {
  readonly #config: NemotronHConfig
  readonly #tensors: PlannedTensor[] = []
  readonly #scales = blockScales()
  readonly #plainCodes = codesWithMean(0)
  readonly #plainTable = codeTable(this.#plainCodes)
  readonly #shiftedCodes
  readonly #shiftedTable
  readonly #constants = new Map<string, DrawTable>()
  readonly #normals = new Map<string, DrawTable>()

  constructor(config: NemotronHConfig, reluZeros: number) {
    this.#config = config
    const { hiddenSize, layers } = config
    // The residual stream grows by what the layers add; the mean over the layers is right on average.
    const growth = Math.sqrt(1 + (layers.length / 2) * branch ** 2)
    const wanted = (-normalQuantile(reluZeros) * growth) / (common * Math.sqrt(hiddenSize))
    // Block scales spread the products of a row without moving their mean.
    this.#shiftedCodes = codesWithMean((wanted * this.#scales.rms) / this.#scales.mean)
    this.#shiftedTable = codeTable(this.#shiftedCodes)
  }

  plan(): PlannedTensor[] {
    const { vocabSize, hiddenSize, layers } = this.#config
    const deviation = Math.sqrt(1 - common ** 2)
    this.#add(
      'backbone.embeddings.weight',
      'BF16',
      [vocabSize, hiddenSize],
      normalTable('BF16', { mean: common, deviation }),
    )
    for (const [index, kind] of layers.entries()) {
      const prefix = `backbone.layers.${index}`
      this.#constant(`${prefix}.norm.weight`, 'BF16', [hiddenSize], 1)
      if (kind === 'mamba') this.#mamba(`${prefix}.mixer`)
      else if (kind === 'moe') this.#moe(`${prefix}.mixer`)
      else if (kind === 'attention') this.#attention(`${prefix}.mixer`)
      else throw new RangeError(`no preset has ${kind} layers`)
    }
    this.#constant('backbone.norm_f.weight', 'BF16', [hiddenSize], 1)
    this.#linear('lm_head', vocabSize, hiddenSize, 1)
    return this.#tensors
  }

  #mamba(mixer: string): void {
    const { heads, headDim, groups, stateSize, convKernel } = this.#config.mamba
    const { hiddenSize } = this.#config
    const inner = heads * headDim
    const channels = inner + 2 * groups * stateSize
    const [slowest, fastest] = [0.001, 0.1]
    const step = (p: number) => slowest * (fastest / slowest) ** p
    this.#add(
      `${mixer}.A_log`,
      'BF16',
      [heads],
      this.#shared('A_log', () => quantileTable('BF16', (p) => Math.log(1 + 15 * p))),
    )
    this.#constant(`${mixer}.D`, 'BF16', [heads], 1)
    // The inverse of softplus.
    const bias = this.#shared('dt_bias', () => quantileTable('BF16', (p) => Math.log(Math.expm1(step(p)))))
    this.#add(`${mixer}.dt_bias`, 'BF16', [heads], bias)
    this.#normal(`${mixer}.conv1d.weight`, 'BF16', [channels, 1, convKernel], 1 / Math.sqrt(convKernel))
    this.#normal(`${mixer}.conv1d.bias`, 'BF16', [channels], 0.1)
    this.#constant(`${mixer}.norm.weight`, 'BF16', [inner], 1)
    this.#linear(`${mixer}.in_proj`, inner + channels + heads, hiddenSize, 1)
    this.#linear(`${mixer}.out_proj`, hiddenSize, inner, branch)
  }

  #attention(mixer: string): void {
    const { heads, kvHeads, headDim } = this.#config.attention
    const { hiddenSize } = this.#config
    this.#linear(`${mixer}.q_proj`, heads * headDim, hiddenSize, 1)
    this.#linear(`${mixer}.k_proj`, kvHeads * headDim, hiddenSize, 1)
    this.#linear(`${mixer}.v_proj`, kvHeads * headDim, hiddenSize, 1)
    this.#linear(`${mixer}.o_proj`, hiddenSize, heads * headDim, branch)
  }

  #moe(mixer: string): void {
    const { experts, width, sharedWidth } = this.#config.moe
    const { hiddenSize } = this.#config
    const router = { deviation: 1 / Math.sqrt(hiddenSize), alternate: true }
    this.#add(
      `${mixer}.gate.weight`,
      'F32',
      [experts, hiddenSize],
      this.#shared('router', () => normalTable('F32', router)),
    )
    this.#normal(`${mixer}.gate.e_score_correction_bias`, 'F32', [experts], 0.01)
    for (let expert = 0; expert < experts; expert++) {
      this.#linear(`${mixer}.experts.${expert}.up_proj`, width, hiddenSize, 1, true)
      this.#linear(`${mixer}.experts.${expert}.down_proj`, hiddenSize, width, branch)
    }
    this.#linear(`${mixer}.shared_experts.up_proj`, sharedWidth, hiddenSize, 1, true)
    this.#linear(`${mixer}.shared_experts.down_proj`, hiddenSize, sharedWidth, branch)
  }

  /** A linear module, in the format that the recipe says, whose output is `gain` times the size of its input. */
  #linear(module: string, out: number, inputs: number, gain: number, shifted = false): void {
    const deviation = gain / Math.sqrt(inputs)
    if (this.#config.quantization.formatOf(module).format !== 'nvfp4') {
      this.#normal(`${module}.weight`, 'BF16', [out, inputs], deviation)
      return
    }
    const { rms } = shifted ? this.#shiftedCodes : this.#plainCodes
    const scale = Math.fround(deviation / (this.#scales.rms * rms))
    this.#add(`${module}.weight`, 'U8', [out, inputs / 2], shifted ? this.#shiftedTable : this.#plainTable)
    this.#add(`${module}.weight_scale`, 'F8_E4M3', [out, inputs / 16], this.#scales.table)
    this.#constant(`${module}.weight_scale_2`, 'F32', [], scale)
    this.#constant(`${module}.input_scale`, 'F32', [], Math.fround(inputScale))
  }

  #normal(name: string, dtype: 'BF16' | 'F32', shape: readonly number[], deviation: number): void {
    this.#add(
      name,
      dtype,
      shape,
      this.#shared(`${dtype} ${deviation}`, () => normalTable(dtype, { deviation })),
    )
  }

  #constant(name: string, dtype: 'BF16' | 'F32', shape: readonly number[], value: number): void {
    const key = `${dtype} ${value}`
    const table = this.#constants.get(key) ?? constantTable(dtype, value)
    this.#constants.set(key, table)
    this.#tensors.push({ name, dtype, shape, table, value })
  }

  #shared(key: string, make: () => DrawTable): DrawTable {
    const table = this.#normals.get(key) ?? make()
    this.#normals.set(key, table)
    return table
  }

  #add(name: string, dtype: PlannedTensor['dtype'], shape: readonly number[], table: DrawTable): void {
    this.#tensors.push({ name, dtype, shape, table })
  }
}
