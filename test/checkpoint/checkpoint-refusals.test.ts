import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import {
  experts,
  folderOf,
  inProj,
  load,
  modelopt,
  nvfp4Packed,
  open,
  type Parts,
  quantized,
  renamed,
  stacked,
  without,
} from '../helpers/checkpoint-parts.js'
import { expectError } from '../helpers/expect-error.js'
import { microConfig, microTensors } from '../helpers/micro-checkpoint.js'
import { buildSafetensors, f32, folderWith, zeros } from '../helpers/safetensors.js'

describe('Checkpoint refuses', () => {
  const nvfp4 = quantized('nvfp4')
  const own = modelopt('NVFP4')

  it.each<[string, Parts, ...string[]]>([
    ['a missing plain tensor', { tensors: without(microTensors(), /norm_f/) }, '"backbone.norm_f.weight" is missing'],
    ['a missing weight', { tensors: without(microTensors(), /q_proj/) }, 'q_proj.weight" is missing'],
    [
      'a missing expert',
      { tensors: without(microTensors(), /experts\.3\.up/) },
      'experts.3.up_proj.weight" is missing',
    ],
    ['a missing head', { tensors: without(microTensors(), /lm_head/) }, '"lm_head.weight" is missing'],
    ['a missing convolution bias', { tensors: without(microTensors(), /conv1d.bias/) }, 'conv1d.bias" is missing'],
    ['a declared bias that is missing', { config: { use_bias: true } }, 'in_proj.bias" is missing'],
    [
      'an unknown tensor',
      { tensors: { ...microTensors(), 'backbone.layers.0.extra': zeros('F32', 1) } },
      '"backbone.layers.0.extra"',
      'unknown',
    ],
    [
      'a layer too many',
      { tensors: { ...microTensors(), 'backbone.layers.4.norm.weight': zeros('BF16', 32) } },
      'layers.4.norm.weight',
    ],
    [
      'a bias that is not declared',
      { tensors: { ...microTensors(), [`${inProj}.bias`]: zeros('F32', 246) } },
      'in_proj.bias',
    ],
    [
      'a weight of another shape',
      { config: { vocab_size: 65 } },
      'shape [65, 32]',
      'backbone.embeddings.weight',
      'BF16 [64, 32]',
    ],
    ['a linear weight of another shape', { config: { mamba_head_dim: 32 } }, 'shape [438, 32]', `"${inProj}.weight"`],
    [
      'a plain tensor of integers',
      { tensors: { ...microTensors(), 'backbone.norm_f.weight': zeros('I32', 32) } },
      'F32 or BF16 or F16',
      'I32',
    ],
    [
      'a weight of integers',
      { tensors: { ...microTensors(), [`${inProj}.weight`]: zeros('I8', 246, 32) } },
      'in_proj.weight',
      'I8',
    ],
    ['two prefixes', { tensors: { ...microTensors(), 'model.norm_f.weight': zeros('BF16', 32) } }, 'one prefix'],
    ['quantized tensors without a recipe', { tensors: nvfp4 }, inProj, 'not quantized', 'config.json', 'U8 [246, 16]'],
    [
      'a recipe without quantized tensors',
      { files: own },
      inProj,
      'NVFP4 (modelopt)',
      'hf_quant_config.json',
      'BF16 [246, 32]',
    ],
    ['the other kind of quantization', { tensors: quantized('fp8'), files: own }, inProj, 'NVFP4', 'F8_E4M3'],
    ['NVFP4 of the other naming', { tensors: quantized('nvfp4-packed'), files: own }, inProj, 'weight_packed'],
    [
      'an excluded module that is quantized',
      { tensors: nvfp4, files: modelopt('NVFP4', { exclude_modules: ['lm_head', inProj] }) },
      inProj,
      'not quantized',
    ],
    [
      'a quantized module that is not listed',
      {
        tensors: microTensors((m) => (m === inProj ? 'fp8' : 'bf16')),
        files: modelopt('MIXED_PRECISION', { quantized_layers: {} }),
      },
      inProj,
    ],
    [
      'missing block scales',
      { tensors: without(nvfp4, /in_proj.weight_scale$/), files: own },
      'in_proj.weight_scale" is missing',
    ],
    [
      'a missing scale',
      { tensors: without(nvfp4, /in_proj.weight_scale_2$/), files: own },
      'in_proj.weight_scale_2" is missing',
    ],
    [
      'block scales of another dtype',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale`]: zeros('U8', 246, 2) }, files: own },
      'F8_E4M3',
      'weight_scale',
    ],
    [
      'padded block scales',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale`]: zeros('F8_E4M3', 256, 4) }, files: own },
      'shape [246, 2]',
      '[256, 4]',
    ],
    [
      'two scales where one is expected',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: f32([1, 1]) }, files: own },
      'one F32 scale',
      'weight_scale_2',
    ],
    [
      'an integer scale',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: zeros('I32') }, files: own },
      'one F32 scale',
      'I32',
    ],
    [
      'an empty scale',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: zeros('F32', 0) }, files: own },
      'one F32 scale',
    ],
    [
      'a scale that is NaN',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: f32([Number.NaN]) }, files: own },
      'finite positive',
      'weight_scale_2',
      'NaN',
      'model.safetensors',
    ],
    [
      'a scale that is infinite',
      { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: f32([Number.POSITIVE_INFINITY]) }, files: own },
      'Infinity',
    ],
    ['a negative scale', { tensors: { ...nvfp4, [`${inProj}.weight_scale_2`]: f32([-1]) }, files: own }, '-1'],
    [
      'an input scale of 0',
      { tensors: { ...nvfp4, [`${inProj}.input_scale`]: f32([0]) }, files: own },
      'input_scale',
      'got 0',
    ],
    [
      'a reciprocal scale of 0',
      {
        config: nvfp4Packed,
        tensors: { ...quantized('nvfp4-packed'), [`${inProj}.weight_global_scale`]: f32([0], [1]) },
      },
      'weight_global_scale',
    ],
    [
      'a reciprocal scale beyond float32',
      {
        config: nvfp4Packed,
        tensors: { ...quantized('nvfp4-packed'), [`${inProj}.weight_global_scale`]: f32([1e-40], [1]) },
      },
      'weight_global_scale',
      'finite positive',
    ],
    [
      'an infinite reciprocal scale',
      {
        config: nvfp4Packed,
        tensors: {
          ...quantized('nvfp4-packed'),
          [`${inProj}.weight_global_scale`]: f32([Number.POSITIVE_INFINITY], [1]),
        },
      },
      'weight_global_scale',
      'got Infinity',
    ],
    [
      'a KV scale of 0',
      {
        tensors: {
          ...microTensors(),
          'backbone.layers.2.mixer.k_scale': f32([0]),
          'backbone.layers.2.mixer.v_scale': f32([1]),
        },
      },
      'k_scale',
    ],
    [
      'rows that blocks of 16 do not divide',
      { config: { moe_intermediate_size: 24 }, tensors: nvfp4, files: own },
      'experts.0',
      'shape [24, 16]',
    ],
    [
      'a stack with too few experts',
      { tensors: stacked('bf16'), config: { n_routed_experts: 5, n_group: 1 } },
      'gate.weight',
    ],
    [
      'a stack of another shape',
      { tensors: { ...stacked('bf16'), [`${experts}.up_proj.weight`]: zeros('BF16', 4, 32, 16) } },
      'shape [4, 16, 32]',
    ],
    [
      'a stack beside single experts',
      { tensors: { ...stacked('bf16'), ...microTensors() } },
      'unknown tensors',
      'experts.0',
    ],
    [
      'a stack with mixed formats',
      { tensors: stacked('nvfp4'), files: modelopt('NVFP4', { exclude_modules: ['lm_head', `${experts}.2.up_proj`] }) },
      'different formats',
      'experts.up_proj',
    ],
    [
      'a malformed generation config',
      { files: { 'generation_config.json': '{"top_p": ' } },
      'generation_config.json',
      'line 1',
    ],
    [
      'a generation config that is a list',
      { files: { 'generation_config.json': '[]' } },
      'generation_config.json',
      'JSON object',
    ],
    [
      'a temperature below 0',
      { files: { 'generation_config.json': { temperature: -1 } } },
      '`temperature`',
      'generation_config.json',
    ],
    ['a top_p of 0', { files: { 'generation_config.json': { top_p: 0 } } }, '`top_p`'],
    ['a top_k that is no integer', { files: { 'generation_config.json': { top_k: 1.5 } } }, '`top_k`'],
    ['a min_p above 1', { files: { 'generation_config.json': { min_p: 2 } } }, '`min_p`'],
    ['a penalty of 0', { files: { 'generation_config.json': { repetition_penalty: 0 } } }, '`repetition_penalty`'],
    ['do_sample that is no boolean', { files: { 'generation_config.json': { do_sample: 1 } } }, '`do_sample`'],
    [
      'a stop id outside the vocabulary',
      { files: { 'generation_config.json': { eos_token_id: [64] } } },
      '`eos_token_id`',
      '64',
    ],
    [
      'a malformed config',
      { files: { 'config.json': '{"model_type" "nemotron_h"}' } },
      'config.json',
      'line 1, column 15',
    ],
    ['a malformed sidecar', { files: { 'hf_quant_config.json': '{' } }, 'hf_quant_config.json'],
  ])('%s', async (_, parts, ...texts) => {
    await expectError(() => load(parts), 'BAD_FORMAT', ...texts)
  })

  it('inputs that blocks of 16 do not divide', async () => {
    const config = { mamba_num_heads: 3, mamba_head_dim: 8, n_groups: 1, layers_block_type: ['mamba'] }
    const base = without(nvfp4, /layers\.[123]/)
    const outProj = { 'backbone.layers.0.mixer.out_proj.weight': zeros('U8', 32, 12) }
    const checkpoint = await open({ config, tensors: { ...without(base, /out_proj/), ...outProj }, files: own })
    const run = () => checkpoint.linear('backbone.layers.0.mixer.out_proj', 32, 24)
    await expectError(run, 'BAD_FORMAT', 'a multiple of 16 inputs, got 24', 'out_proj')
  })

  it('other kinds of models', async () => {
    await expectError(() => open({ config: { model_type: 'llama' } }), 'UNSUPPORTED_MODEL', 'llama')
    const inner = renamed(microTensors(), /^/, 'language_model.')
    await expectError(() => open({ tensors: inner }), 'UNSUPPORTED_MODEL', 'language_model.')
    await expectError(() => open({ files: modelopt('NVFP4_AWQ') }), 'UNSUPPORTED_MODEL', 'NVFP4_AWQ')
  })

  it('folders that hold no model', async () => {
    const folder = await folderWith({ 'model.safetensors': buildSafetensors(microTensors()) })
    await expectError(() => Checkpoint.open(join(folder, 'missing')), 'MODEL_NOT_FOUND', 'missing')
    await expectError(() => Checkpoint.open(join(folder, 'model.safetensors')), 'MODEL_NOT_FOUND', 'no folder')
    await expectError(() => Checkpoint.open(folder), 'MODEL_NOT_FOUND', 'no config.json')
    const weightless = await folderWith({ 'config.json': microConfig })
    await expectError(() => Checkpoint.open(weightless), 'MODEL_NOT_FOUND', 'no .safetensors file')
  })

  it('to go on after an abort', async () => {
    const signal = AbortSignal.abort(new Error('enough'))
    await expect(Checkpoint.open(await folderOf(), { signal })).rejects.toThrow('enough')
  })
})
