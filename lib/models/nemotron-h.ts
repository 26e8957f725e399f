import type { Experts, Linear, WeightLoader } from '../checkpoint/weight-loader.js'
import type { MambaState } from '../core/op-parameters.js'
import type { Stream } from '../core/stream.js'
import type { Tensor } from '../core/tensor.js'
import type { NemotronHConfig } from './config.js'

/** What a forward pass reads beside weights. The step itself (tokens, positions, slots, pages) travels in StepInput. */
export interface Batch {
  /** Most tokens in one step. */
  readonly tokens: number
  /** Most logits rows in one step. */
  readonly rows: number
  /** Sampling state of all slots, i32 [slots, 8]: last sampled tokens and active flags. */
  readonly slots: Tensor
  readonly cache: LayerCaches
  /** Counters of a mixture-of-experts layer (`Stream.moe`); nothing is counted without. */
  readonly statistics?: ((index: number) => Tensor) | undefined
}

/** Per-layer state of all sequences. */
export interface LayerCaches {
  /** Mamba state of layer `index` of the model. */
  mamba(index: number): MambaState
  /** KV pages of layer `index` of the model: [pages, 2, kvHeads, 64, headDim]. */
  attention(index: number): Tensor
}

interface Layer {
  /** Adds the layer's output to x, f32 [tokens, hidden], in place. */
  forward(s: Stream, x: Tensor, batch: Batch): Tensor
}

/** Where a layer finds its parameters. */
interface Source {
  readonly config: NemotronHConfig
  readonly load: WeightLoader
  readonly index: number
  /** `backbone.layers.N` */
  readonly prefix: string
  /** Scales of the FP8 cache of an attention layer. */
  kvScales(): { k: number; v: number }
}

/** y = mixer(rms(x)); the norm is the prologue of the first projection, the residual the epilogue of the last. */
class MambaLayer implements Layer {
  readonly #norm: Tensor
  readonly #inProj: Linear
  readonly #outProj: Linear
  readonly #mixer
  readonly #epsilon: number
  readonly #index: number

  constructor({ config, load, index, prefix }: Source) {
    const { heads, headDim, groups, stateSize, convKernel, convBias } = config.mamba
    const inner = heads * headDim
    const channels = inner + 2 * groups * stateSize
    const mixer = `${prefix}.mixer`
    this.#index = index
    this.#epsilon = config.epsilon
    this.#norm = load.tensor(`${prefix}.norm.weight`, [config.hiddenSize])
    this.#inProj = load.linear([[`${mixer}.in_proj`, inner + channels + heads]], config.hiddenSize)
    this.#outProj = load.linear([[`${mixer}.out_proj`, config.hiddenSize]], inner)
    this.#mixer = {
      groups,
      epsilon: config.epsilon,
      convWeight: load.matrix(`${mixer}.conv1d.weight`, [channels, 1, convKernel], [channels, convKernel]),
      convBias: convBias ? load.tensor(`${mixer}.conv1d.bias`, [channels]) : undefined,
      dtBias: load.tensor(`${mixer}.dt_bias`, [heads]),
      aLog: load.tensor(`${mixer}.A_log`, [heads]),
      d: load.tensor(`${mixer}.D`, [heads]),
      norm: load.tensor(`${mixer}.norm.weight`, [inner]),
    }
  }

  forward(s: Stream, x: Tensor, batch: Batch): Tensor {
    const { weight, bias } = this.#inProj
    const projected = s.linear(x, weight, { norm: this.#norm, epsilon: this.#epsilon, bias })
    const y = s.mamba(projected, this.#mixer, batch.cache.mamba(this.#index), batch.slots)
    return s.linear(y, this.#outProj.weight, { add: x, bias: this.#outProj.bias })
  }
}

class AttentionLayer implements Layer {
  readonly #norm: Tensor
  readonly #qkv: Linear
  readonly #o: Linear
  readonly #attention
  readonly #epsilon: number
  readonly #index: number

  constructor({ config, load, index, prefix, kvScales }: Source) {
    const { heads, kvHeads, headDim } = config.attention
    const mixer = `${prefix}.mixer`
    const scales = kvScales()
    this.#index = index
    this.#epsilon = config.epsilon
    this.#norm = load.tensor(`${prefix}.norm.weight`, [config.hiddenSize])
    this.#qkv = load.linear(
      [
        [`${mixer}.q_proj`, heads * headDim],
        [`${mixer}.k_proj`, kvHeads * headDim],
        [`${mixer}.v_proj`, kvHeads * headDim],
      ],
      config.hiddenSize,
    )
    this.#o = load.linear([[`${mixer}.o_proj`, config.hiddenSize]], heads * headDim)
    this.#attention = { heads, kScale: scales.k, vScale: scales.v }
  }

  forward(s: Stream, x: Tensor, batch: Batch): Tensor {
    const { weight, bias } = this.#qkv
    const qkv = s.linear(x, weight, { norm: this.#norm, epsilon: this.#epsilon, bias })
    const y = s.attention(qkv, this.#attention, batch.cache.attention(this.#index), batch.slots)
    return s.linear(y, this.#o.weight, { add: x, bias: this.#o.bias })
  }
}

class MoeLayer implements Layer {
  readonly #parameters
  readonly #index: number

  constructor({ config, load, index, prefix }: Source) {
    this.#index = index
    const { experts, topK, width, sharedWidth, normTopK, scale, groups, topkGroups } = config.moe
    const hidden = config.hiddenSize
    const mixer = `${prefix}.mixer`
    const up: Experts = load.experts(`${mixer}.experts`, 'up_proj', experts, width, hidden)
    const down: Experts = load.experts(`${mixer}.experts`, 'down_proj', experts, hidden, width)
    const shared = sharedWidth > 0 && {
      up: load.linear([[`${mixer}.shared_experts.up_proj`, sharedWidth]], hidden, { op: 'moe' }),
      down: load.linear([[`${mixer}.shared_experts.down_proj`, hidden]], sharedWidth, { sparse: true, op: 'moe' }),
    }
    this.#parameters = {
      norm: load.tensor(`${prefix}.norm.weight`, [hidden]),
      epsilon: config.epsilon,
      router: load.tensor(`${mixer}.gate.weight`, [experts, hidden]),
      bias: load.tensor(`${mixer}.gate.e_score_correction_bias`, [experts]),
      up: up.weight,
      upBias: up.bias,
      down: down.weight,
      downBias: down.bias,
      ...(shared && {
        sharedUp: shared.up.weight,
        sharedUpBias: shared.up.bias,
        sharedDown: shared.down.weight,
        sharedDownBias: shared.down.bias,
      }),
      topK,
      groups,
      topkGroups,
      normalize: normTopK,
      scale,
    }
  }

  forward(s: Stream, x: Tensor, batch: Batch): Tensor {
    return s.moe(x, this.#parameters, batch.statistics?.(this.#index))
  }
}

class MlpLayer implements Layer {
  readonly #norm: Tensor
  readonly #up: Linear
  readonly #down: Linear
  readonly #epsilon: number

  constructor({ config, load, prefix }: Source) {
    this.#epsilon = config.epsilon
    this.#norm = load.tensor(`${prefix}.norm.weight`, [config.hiddenSize])
    this.#up = load.linear([[`${prefix}.mixer.up_proj`, config.mlp.width]], config.hiddenSize)
    this.#down = load.linear([[`${prefix}.mixer.down_proj`, config.hiddenSize]], config.mlp.width)
  }

  forward(s: Stream, x: Tensor): Tensor {
    const { weight, bias } = this.#up
    const h = s.linear(x, weight, { norm: this.#norm, epsilon: this.#epsilon, bias, activation: 'relu2' })
    return s.linear(h, this.#down.weight, { add: x, bias: this.#down.bias })
  }
}

const layerClasses = { mamba: MambaLayer, attention: AttentionLayer, moe: MoeLayer, mlp: MlpLayer }

/** The Nemotron-H decoder: one mixer and one norm a layer, a float32 residual stream, an untied head. */
export class NemotronH {
  readonly config: NemotronHConfig
  readonly #embedding: Tensor
  readonly #layers: readonly Layer[]
  readonly #norm: Tensor
  readonly #head: Linear

  private constructor(
    config: NemotronHConfig,
    parts: { embedding: Tensor; layers: readonly Layer[]; norm: Tensor; head: Linear },
  ) {
    this.config = config
    this.#embedding = parts.embedding
    this.#layers = parts.layers
    this.#norm = parts.norm
    this.#head = parts.head
  }

  /** Enqueues the loading of every parameter; `progress` is awaited after each layer. */
  static async load(
    config: NemotronHConfig,
    load: WeightLoader,
    kvScales: (layer: number) => { k: number; v: number },
    progress: () => Promise<void>,
  ): Promise<NemotronH> {
    const embedding = load.table('backbone.embeddings.weight', [config.vocabSize, config.hiddenSize])
    const layers: Layer[] = []
    for (const [index, kind] of config.layers.entries()) {
      const prefix = `backbone.layers.${index}`
      layers.push(new layerClasses[kind]({ config, load, index, prefix, kvScales: () => kvScales(index) }))
      await progress()
    }
    const norm = load.tensor('backbone.norm_f.weight', [config.hiddenSize])
    const head = load.linear([['lm_head', config.vocabSize]], config.hiddenSize)
    await progress()
    return new NemotronH(config, { embedding, layers, norm, head })
  }

  /** Enqueues one step over a ragged batch. Returns f32 [rows, vocabulary], the logits of the rows that asked for them. */
  forward(s: Stream, batch: Batch): Tensor {
    const x = s.embed(this.#embedding, batch.tokens, batch.slots)
    for (const layer of this.#layers) s.scope(() => layer.forward(s, x, batch))
    const { weight, bias } = this.#head
    return s.linear(x, weight, { norm: this.#norm, epsilon: this.config.epsilon, bias, rows: batch.rows })
  }
}
