import type { JsonObject } from '../checkpoint/config-json.js'
import { Fields } from '../checkpoint/fields.js'
import type { QuantizationRecipe } from '../checkpoint/recipe.js'

/** What one layer computes: Mamba-2, routed experts, attention, or a dense relu² MLP. */
export type LayerKind = 'mamba' | 'moe' | 'attention' | 'mlp'

/** Shapes of the Mamba-2 layers. All sizes are 0 when the model has none. */
export interface MambaConfig {
  readonly heads: number
  readonly headDim: number
  readonly stateSize: number
  /** Groups of B and C, and of the gated norm; divides `heads`. */
  readonly groups: number
  readonly convKernel: number
  readonly convBias: boolean
  /** Whether in_proj and out_proj have biases (`use_bias`). */
  readonly projBias: boolean
}

/** Shapes of the attention layers. All sizes are 0 when the model has none. There is no positional encoding. */
export interface AttentionConfig {
  readonly heads: number
  /** Divides `heads`. */
  readonly kvHeads: number
  readonly headDim: number
  /** What the config says; transformers 5 builds no attention bias whatever it says, so the tensors decide. */
  readonly bias: boolean
}

/** Shapes and routing of the mixture-of-experts layers. All sizes are 0 when the model has none. */
export interface MoeConfig {
  readonly experts: number
  /** Experts per token. */
  readonly topK: number
  /** Inner width of one routed expert. */
  readonly width: number
  /** Inner width of the shared expert, `sharedExperts` fused. */
  readonly sharedWidth: number
  /** As the config states it; no shape depends on it. */
  readonly sharedExperts: number
  /** Divide the chosen scores by their sum. */
  readonly normTopK: boolean
  /** Factor on the chosen scores. */
  readonly scale: number
  /** Routing groups; divides `experts`. */
  readonly groups: number
  /** Groups that may be chosen from. */
  readonly topkGroups: number
  /** Whether experts have biases (`mlp_bias`). */
  readonly bias: boolean
}

/** Shape of the dense MLP layers. The width is 0 when the model has none. */
export interface MlpConfig {
  readonly width: number
  readonly bias: boolean
}

/** A validated model configuration of the Nemotron-H family, all defaults resolved. */
export interface NemotronHConfig {
  /** Where it was read from. */
  readonly file: string
  readonly vocabSize: number
  readonly hiddenSize: number
  readonly layers: readonly LayerKind[]
  /** Of every RMS norm, the gated one included. */
  readonly epsilon: number
  readonly mamba: MambaConfig
  readonly attention: AttentionConfig
  readonly moe: MoeConfig
  readonly mlp: MlpConfig
  /** Context length that the model states. */
  readonly maxPositions: number
  /** What the config says; a stored `lm_head.weight` is used all the same, as transformers does. */
  readonly tieEmbeddings: boolean
  /** Multi-token-prediction layers; nibblet does not run them. */
  readonly mtpLayers: number
  readonly bosId: number | undefined
  readonly eosIds: readonly number[]
  readonly quantization: QuantizationRecipe
}

const letters: Readonly<Record<string, LayerKind>> = { M: 'mamba', E: 'moe', '*': 'attention', '-': 'mlp' }
// `mlp` is the dense layer in the old spelling and in transformers 5's; only the two others were renamed.
const kinds: Readonly<Record<string, LayerKind>> = {
  mamba: 'mamba',
  linear_attention: 'mamba',
  moe: 'moe',
  attention: 'attention',
  full_attention: 'attention',
  mlp: 'mlp',
}
const layerLimit = 10_000

function spell<T>(items: readonly string[], table: Readonly<Record<string, T>>, key: string, fields: Fields): T[] {
  return items.map((item) => {
    const kind = Object.hasOwn(table, item) ? table[item] : undefined
    if (kind === undefined) {
      throw fields.unsupported(key, item, `the layer types ${Object.keys(table).join(', ')}`)
    }
    return kind
  })
}

function readLayers(fields: Fields): LayerKind[] {
  const spellings: [string, LayerKind[]][] = []
  if (fields.has('hybrid_override_pattern')) {
    const key = 'hybrid_override_pattern'
    spellings.push([key, spell([...fields.string(key)], letters, key, fields)])
  }
  for (const key of ['layers_block_type', 'layer_types']) {
    if (fields.has(key)) spellings.push([key, spell(fields.strings(key), kinds, key, fields)])
  }
  const [first, ...others] = spellings
  if (!first) throw fields.bad('hybrid_override_pattern', 'a pattern or a list `layers_block_type`', undefined)
  const [key, layers] = first
  for (const [otherKey, other] of others) {
    if (other.join() !== layers.join())
      throw fields.bad(otherKey, `the same layers as in \`${key}\``, fields.raw(otherKey))
  }
  if (layers.length === 0 || layers.length > layerLimit) {
    throw fields.bad(key, `1 to ${layerLimit} layers`, fields.raw(key))
  }
  if (fields.has('num_hidden_layers')) {
    const count = fields.size('num_hidden_layers')
    if (count !== layers.length)
      throw fields.bad('num_hidden_layers', `${layers.length}, the length of \`${key}\``, count)
  }
  return layers
}

function divides(part: number, whole: number, key: string, wholeKey: string, fields: Fields): void {
  if (whole % part !== 0) throw fields.bad(key, `a divisor of \`${wholeKey}\` = ${whole}`, part)
}

function activation(fields: Fields, key: string, fallback: string, accepted: readonly string[]): void {
  const name = fields.string(key, fallback)
  if (!accepted.includes(name)) throw fields.unsupported(key, name, accepted.join(', '))
}

function readMamba(fields: Fields, present: boolean): MambaConfig {
  if (!present)
    return { heads: 0, headDim: 0, stateSize: 0, groups: 0, convKernel: 0, convBias: false, projBias: false }
  activation(fields, 'mamba_hidden_act', 'silu', ['silu', 'swish'])
  const heads = fields.size('mamba_num_heads')
  const groups = fields.size(['n_groups', 'mamba_n_groups'])
  divides(groups, heads, 'n_groups', 'mamba_num_heads', fields)
  const limit = fields.raw(['time_step_limit', 'mamba_dt_limit'])
  if (limit !== undefined) {
    const range = Array.isArray(limit) && limit.length === 2 ? limit : [Number.NaN]
    if (!range.every((bound) => typeof bound === 'number' && !Number.isNaN(bound))) {
      throw fields.bad('time_step_limit', 'two numbers', limit)
    }
    // softplus is never negative, so any lower bound up to 0 changes nothing.
    if ((range[0] as number) > 0 || range[1] !== Number.POSITIVE_INFINITY) {
      throw fields.unsupported('time_step_limit', String(range), 'no clamp of the time step: [0, Infinity]')
    }
  }
  return {
    heads,
    headDim: fields.size('mamba_head_dim'),
    stateSize: fields.size('ssm_state_size'),
    groups,
    convKernel: fields.size(['conv_kernel', 'mamba_d_conv'], 4),
    convBias: fields.boolean(['use_conv_bias', 'mamba_conv_bias'], true),
    projBias: fields.boolean('use_bias', false),
  }
}

function readAttention(fields: Fields, present: boolean): AttentionConfig {
  if (!present) return { heads: 0, kvHeads: 0, headDim: 0, bias: false }
  const window = fields.raw('sliding_window')
  if (window !== undefined) throw fields.unsupported('sliding_window', window, 'full attention (null)')
  const heads = fields.size('num_attention_heads')
  const kvHeads = fields.size('num_key_value_heads', heads)
  divides(kvHeads, heads, 'num_key_value_heads', 'num_attention_heads', fields)
  return {
    heads,
    kvHeads,
    headDim: fields.size(['head_dim', 'attention_head_dim'], 128),
    bias: fields.boolean('attention_bias', false),
  }
}

function readMoe(fields: Fields, present: boolean): MoeConfig {
  const none = { experts: 0, topK: 0, width: 0, sharedWidth: 0, sharedExperts: 0, groups: 0, topkGroups: 0 }
  if (!present) return { ...none, normTopK: false, scale: 1, bias: false }
  const latent = fields.raw('moe_latent_size')
  if (latent !== undefined)
    throw fields.unsupported('moe_latent_size', latent, 'experts on the full hidden size (null)')
  const experts = fields.size(['n_routed_experts', 'num_local_experts'])
  const topK = fields.size('num_experts_per_tok')
  const groups = fields.size('n_group', 1)
  const topkGroups = fields.size('topk_group', 1)
  divides(groups, experts, 'n_group', 'n_routed_experts', fields)
  if (topkGroups > groups) throw fields.bad('topk_group', `at most \`n_group\` = ${groups}`, topkGroups)
  if (experts / groups < 2 && groups > 1) {
    // A group is ranked by the sum of its two best experts.
    throw fields.bad('n_group', `at least two of the ${experts} experts in each group`, groups)
  }
  const choice = (experts / groups) * topkGroups
  if (topK > choice) throw fields.bad('num_experts_per_tok', `at most ${choice}, the experts to choose from`, topK)
  return {
    experts,
    topK,
    width: fields.size('moe_intermediate_size'),
    sharedWidth: fields.size('moe_shared_expert_intermediate_size'),
    sharedExperts: fields.integer('n_shared_experts', { min: 0, max: experts }, 1),
    normTopK: fields.boolean('norm_topk_prob', true),
    scale: fields.number('routed_scaling_factor', 'a positive number', (n) => n > 0, 1),
    groups,
    topkGroups,
    bias: fields.boolean('mlp_bias', false),
  }
}

/**
 * Validates a `config.json` of the family in any of its spellings: pattern string, type lists old and new, fields under
 * older names. A field that decides a tensor shape must be there when a layer needs it; the others default as in
 * transformers. Fields that no implementation reads (rope, expand, norm_eps, …) are ignored.
 *
 * @param json the parsed file, see `parseJson`.
 * @throws {ModelError} `BAD_FORMAT` for a malformed or contradictory field, `UNSUPPORTED_MODEL` for a well-formed one that
 *   nibblet does not run; both name the field and the file.
 */
export function parseNemotronHConfig(
  json: JsonObject,
  file: string,
  quantization: QuantizationRecipe,
): NemotronHConfig {
  const fields = new Fields(json, file)
  const type = fields.string('model_type')
  if (type !== 'nemotron_h') throw fields.unsupported('model_type', type, 'nemotron_h')
  const layers = readLayers(fields)
  const has = (kind: LayerKind) => layers.includes(kind)
  if (has('moe') || has('mlp')) activation(fields, 'mlp_hidden_act', 'relu2', ['relu2'])
  const vocabSize = fields.size('vocab_size')
  const hiddenSize = fields.size('hidden_size')
  const [bosId] = fields.tokenIds('bos_token_id', vocabSize)
  return {
    file,
    vocabSize,
    hiddenSize,
    layers,
    epsilon: fields.number('layer_norm_epsilon', 'a positive number', (n) => n > 0, 1e-5),
    mamba: readMamba(fields, has('mamba')),
    attention: readAttention(fields, has('attention')),
    moe: readMoe(fields, has('moe')),
    mlp: has('mlp')
      ? { width: fields.size('intermediate_size'), bias: fields.boolean('mlp_bias', false) }
      : { width: 0, bias: false },
    maxPositions: fields.size('max_position_embeddings', 4096),
    tieEmbeddings: fields.boolean('tie_word_embeddings', false),
    mtpLayers: fields.integer('num_nextn_predict_layers', { min: 0, max: layerLimit }, 0),
    bosId,
    eosIds: fields.tokenIds('eos_token_id', vocabSize),
    quantization,
  }
}
