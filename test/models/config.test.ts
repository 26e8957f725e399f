import { describe, expect, it } from 'vitest'
import type { JsonObject } from '../../lib/checkpoint/config-json.js'
import { noQuantization } from '../../lib/checkpoint/recipe.js'
import { parseNemotronHConfig } from '../../lib/models/config.js'
import { expectError } from '../helpers/expect-error.js'
import { microConfig } from '../helpers/micro-checkpoint.js'

type Changes = Record<string, unknown>

/** The micro config with changes; `undefined` removes a field. */
function parse(changes: Changes = {}) {
  const json = { ...microConfig, time_step_limit: [0, Number.POSITIVE_INFINITY], ...changes }
  const present = Object.fromEntries(Object.entries(json).filter(([, value]) => value !== undefined))
  return parseNemotronHConfig(present as JsonObject, 'm/config.json', noQuantization('m/config.json'))
}

const pattern = (text: unknown, changes: Changes = {}) => ({
  layers_block_type: undefined,
  hybrid_override_pattern: text,
  ...changes,
})

describe('parseNemotronHConfig', () => {
  it('reads what transformers 5 saves', () => {
    const { quantization, ...config } = parse()
    expect(quantization.method).toBe('none')
    expect(config).toEqual({
      file: 'm/config.json',
      vocabSize: 64,
      hiddenSize: 32,
      layers: ['mamba', 'moe', 'attention', 'mlp'],
      epsilon: 1e-5,
      mamba: { heads: 6, headDim: 16, stateSize: 8, groups: 3, convKernel: 4, convBias: true, projBias: false },
      attention: { heads: 6, kvHeads: 2, headDim: 16, bias: false },
      moe: {
        experts: 4,
        topK: 2,
        width: 16,
        sharedWidth: 48,
        sharedExperts: 1,
        normTopK: true,
        scale: 2.5,
        groups: 1,
        topkGroups: 1,
        bias: false,
      },
      mlp: { width: 80, bias: false },
      maxPositions: 512,
      tieEmbeddings: false,
      mtpLayers: 0,
      bosId: 1,
      eosIds: [2, 11],
    })
  })

  it.each<[string, Changes]>([
    ['a pattern', pattern('ME*-', { num_hidden_layers: 4 })],
    ['the old list', { layers_block_type: ['mamba', 'moe', 'attention', 'mlp'] }],
    [
      'the old list under the other name',
      { layers_block_type: undefined, layer_types: ['mamba', 'moe', 'attention', 'mlp'] },
    ],
    ['a pattern beside an equal list', { hybrid_override_pattern: 'ME*-' }],
    ['null beside a pattern', pattern('ME*-', { layer_types: null })],
    ['an MTP pattern beside', { mtp_hybrid_override_pattern: '*E' }],
  ])('reads the layers from %s', (_, changes) => {
    expect(parse(changes).layers).toEqual(['mamba', 'moe', 'attention', 'mlp'])
  })

  it.each<[string, Changes, object]>([
    ['one stop id', { eos_token_id: 2 }, { eosIds: [2] }],
    ['no stop id', { eos_token_id: null, bos_token_id: null }, { eosIds: [], bosId: undefined }],
    ['tied embeddings', { tie_word_embeddings: true }, { tieEmbeddings: true }],
    ['biases', { use_bias: true }, { mamba: { projBias: true } }],
    ['no convolution bias', { use_conv_bias: false }, { mamba: { convBias: false } }],
    [
      'older Mamba names',
      { n_groups: undefined, mamba_n_groups: 2, conv_kernel: undefined, mamba_d_conv: 3 },
      { mamba: { groups: 2, convKernel: 3 } },
    ],
    ['the older head size name', { head_dim: undefined, attention_head_dim: 8 }, { attention: { headDim: 8 } }],
    ['no key-value heads', { num_key_value_heads: null }, { attention: { kvHeads: 6 } }],
    [
      'the other name of the expert count',
      { n_routed_experts: undefined, num_local_experts: 8 },
      { moe: { experts: 8 } },
    ],
    ['routing groups', { n_group: 2, topk_group: 1 }, { moe: { groups: 2, topkGroups: 1 } }],
    [
      'routing defaults',
      { n_group: undefined, topk_group: undefined, norm_topk_prob: undefined, routed_scaling_factor: undefined },
      { moe: { groups: 1, topkGroups: 1, normTopK: true, scale: 1 } },
    ],
    ['no normalisation', { norm_topk_prob: false }, { moe: { normTopK: false } }],
    ['no time step limit', { time_step_limit: undefined }, {}],
    ['a lower limit that never binds', { time_step_limit: [-1, Number.POSITIVE_INFINITY] }, {}],
    ['another epsilon', { layer_norm_epsilon: 1e-6, norm_eps: 1, rms_norm_eps: 1 }, { epsilon: 1e-6 }],
    ['declared prediction layers', { num_nextn_predict_layers: 1 }, { mtpLayers: 1 }],
    [
      'fields that nothing reads',
      {
        rope_theta: 1e4,
        partial_rotary_factor: 1,
        expand: 7,
        mamba_proj_bias: true,
        time_step_min: 1,
        chunk_size: 99,
        n_shared_experts: 2,
        future: {},
      },
      { moe: { sharedExperts: 2, sharedWidth: 48 }, mamba: { projBias: false } },
    ],
  ])('reads %s', (_, changes, expected) => {
    expect(parse(changes)).toMatchObject(expected)
  })

  it('asks for no size of a layer kind that the model does not have', () => {
    const config = parse({
      ...pattern('*'),
      ...Object.fromEntries(
        ['mamba_num_heads', 'n_groups', 'n_routed_experts', 'intermediate_size'].map((n) => [n, undefined]),
      ),
      moe_latent_size: 16,
      mlp_hidden_act: 'gelu',
      time_step_limit: [1, 2],
    })
    expect(config).toMatchObject({ layers: ['attention'], mamba: { heads: 0 }, moe: { experts: 0 }, mlp: { width: 0 } })
  })

  it.each<[Changes, ...string[]]>([
    [{ model_type: 'llama' }, 'model_type', '"llama"'],
    [{ model_type: 'nemotron_h_puzzle' }, 'model_type'],
    [{ mlp_hidden_act: 'silu' }, 'mlp_hidden_act', '"silu"', 'relu2'],
    [{ mamba_hidden_act: 'gelu' }, 'mamba_hidden_act', '"gelu"', 'silu'],
    [{ sliding_window: 4096 }, 'sliding_window', '4096'],
    [{ moe_latent_size: 1024 }, 'moe_latent_size', '1024'],
    [{ time_step_limit: [0.001, 0.1] }, 'time_step_limit', '0.001,0.1'],
    [{ time_step_limit: [0.001, Number.POSITIVE_INFINITY] }, 'time_step_limit'],
    [pattern('MEX'), 'hybrid_override_pattern', '"X"'],
    [{ layers_block_type: ['mamba', 'conv'] }, 'layers_block_type', '"conv"'],
    [{ layers_block_type: ['toString'] }, 'layers_block_type', '"toString"'],
  ])('does not run %j', async (changes, ...texts) => {
    await expectError(() => parse(changes), 'UNSUPPORTED_MODEL', 'm/config.json', ...texts)
  })

  it.each<[Changes, ...string[]]>([
    [{ model_type: undefined }, 'model_type', 'nothing'],
    [{ model_type: 7 }, 'model_type', 'a string', '7'],
    [{ layers_block_type: undefined }, 'hybrid_override_pattern'],
    [{ layers_block_type: [] }, 'layers_block_type', '1 to 10000'],
    [{ layers_block_type: 'mamba' }, 'layers_block_type', 'a list of strings'],
    [{ layers_block_type: [1] }, 'layers_block_type', 'a list of strings'],
    [pattern(''), 'hybrid_override_pattern', '1 to 10000'],
    [pattern(['M']), 'hybrid_override_pattern', 'a string'],
    [pattern('M'.repeat(10_001)), 'hybrid_override_pattern', '1 to 10000'],
    [{ hybrid_override_pattern: 'ME*M' }, 'layers_block_type', 'the same layers'],
    [{ num_hidden_layers: 5 }, 'num_hidden_layers', 'got 5', 'the length of'],
    [{ vocab_size: undefined }, 'vocab_size', 'a positive integer', 'nothing'],
    [{ vocab_size: 0 }, 'vocab_size', 'got 0'],
    [{ hidden_size: -32 }, 'hidden_size', '-32'],
    [{ hidden_size: 32.5 }, 'hidden_size', '32.5'],
    [{ hidden_size: '32' }, 'hidden_size', '"32"'],
    [{ hidden_size: 2 ** 31 }, 'hidden_size', '2147483648'],
    [{ hidden_size: Number.NaN }, 'hidden_size', 'NaN'],
    [{ hidden_size: Number.POSITIVE_INFINITY }, 'hidden_size', 'Infinity'],
    [{ hidden_size: [32] }, 'hidden_size', '[32]'],
    [{ layer_norm_epsilon: 0 }, 'layer_norm_epsilon'],
    [{ layer_norm_epsilon: '1e-5' }, 'layer_norm_epsilon'],
    [{ mamba_num_heads: undefined }, 'mamba_num_heads'],
    [{ mamba_head_dim: undefined }, 'mamba_head_dim'],
    [{ ssm_state_size: undefined }, 'ssm_state_size'],
    [{ n_groups: undefined }, 'n_groups'],
    [{ n_groups: 4 }, 'n_groups', 'a divisor of `mamba_num_heads` = 6', 'got 4'],
    [{ conv_kernel: 0 }, 'conv_kernel'],
    [{ use_conv_bias: 1 }, 'use_conv_bias', 'true or false'],
    [{ time_step_limit: [0] }, 'time_step_limit', 'two numbers'],
    [{ time_step_limit: [0, 'x'] }, 'time_step_limit', 'two numbers'],
    [{ time_step_limit: [0, Number.NaN] }, 'time_step_limit', 'two numbers'],
    [{ num_attention_heads: undefined }, 'num_attention_heads'],
    [{ num_key_value_heads: 4 }, 'num_key_value_heads', 'a divisor of `num_attention_heads` = 6'],
    [{ head_dim: 0 }, 'head_dim'],
    [{ n_routed_experts: undefined }, 'n_routed_experts'],
    [{ num_experts_per_tok: 5 }, 'num_experts_per_tok', 'at most 4'],
    [{ num_experts_per_tok: 0 }, 'num_experts_per_tok'],
    [{ n_group: 3 }, 'n_group', 'a divisor of `n_routed_experts` = 4'],
    [{ n_group: 4 }, 'n_group', 'at least two'],
    [{ n_group: 2, topk_group: 3 }, 'topk_group', 'at most `n_group` = 2'],
    [{ n_group: 2, topk_group: 1, num_experts_per_tok: 3 }, 'num_experts_per_tok', 'at most 2'],
    [{ moe_intermediate_size: undefined }, 'moe_intermediate_size'],
    [{ moe_shared_expert_intermediate_size: undefined }, 'moe_shared_expert_intermediate_size'],
    [{ routed_scaling_factor: -1 }, 'routed_scaling_factor'],
    [{ routed_scaling_factor: Number.POSITIVE_INFINITY }, 'routed_scaling_factor', 'Infinity'],
    [{ norm_topk_prob: 'yes' }, 'norm_topk_prob'],
    [{ intermediate_size: undefined }, 'intermediate_size'],
    [{ tie_word_embeddings: 0 }, 'tie_word_embeddings'],
    [{ eos_token_id: [2, 64] }, 'eos_token_id', 'below the vocabulary size 64'],
    [{ eos_token_id: -1 }, 'eos_token_id'],
    [{ eos_token_id: '2' }, 'eos_token_id'],
    [{ bos_token_id: 1.5 }, 'bos_token_id'],
    [{ max_position_embeddings: 0 }, 'max_position_embeddings'],
    [{ num_nextn_predict_layers: -1 }, 'num_nextn_predict_layers'],
  ])('refuses %j', async (changes, field, ...texts) => {
    await expectError(() => parse(changes), 'BAD_FORMAT', `\`${field}\` in m/config.json`, ...texts)
  })
})
