import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeEach, describe, expect, test } from 'vitest'
import { Device } from '../../lib/core/device.js'
import { type LoadOptions, loadModel } from '../../lib/index.js'
import { expectError } from '../helpers/expect-error.js'
import { microConfig, microTensors } from '../helpers/micro-checkpoint.js'
import { buildSafetensors, f32, folderWith, type TestTensor, zeros } from '../helpers/safetensors.js'

type Tensors = Record<string, TestTensor>

const fixture = fileURLToPath(new URL('../fixtures/micro/bf16-basic', import.meta.url))
const small: LoadOptions = { contextLength: 128, maxBatch: 1, threads: 2 }
const inProj = 'backbone.layers.0.mixer.in_proj'
const expert = 'backbone.layers.1.mixer.experts.2.up_proj'
const sidecar = (algorithm: string) => ({
  'hf_quant_config.json': { quantization: { quant_algo: algorithm, exclude_modules: ['lm_head'] } },
})
const quantized = (format: 'nvfp4' | 'fp8' | 'fp8-channel') =>
  microTensors((module) => (module === 'lm_head' ? 'bf16' : format))
const allocated = () => Device.open('cpu').memory().allocated

let before = 0
beforeEach(() => {
  before = allocated()
})

/** Loading must fail so, and give back all native memory. */
async function expectFailure(folder: string, code: Parameters<typeof expectError>[1], ...texts: string[]) {
  for (const exact of [false, true]) {
    await expectError(() => loadModel(folder, { ...small, exact }), code, ...texts)
    await expect.poll(allocated).toBe(before)
  }
}

function folderOf(tensors: Tensors, files: Record<string, object> = {}): Promise<string> {
  return folderWith({ 'config.json': microConfig, 'model.safetensors': buildSafetensors(tensors), ...files })
}

test('the checkpoint that the others are broken copies of loads, in every format, and frees what it took', async () => {
  const loads = [
    folderOf(microTensors()),
    folderOf(quantized('nvfp4'), sidecar('NVFP4')),
    folderOf(quantized('fp8'), sidecar('FP8')),
  ]
  for (const folder of await Promise.all(loads)) {
    const model = await loadModel(folder, small)
    expect(allocated()).toBeGreaterThan(before)
    expect((await model.score([3, 4, 5])).argmax).toHaveLength(3)
    await model.dispose()
    await expect.poll(allocated).toBe(before)
  }
})

describe('broken tensors', () => {
  test.each([
    'backbone.embeddings.weight',
    'backbone.norm_f.weight',
    'lm_head.weight',
    `${inProj}.weight`,
    'backbone.layers.0.mixer.A_log',
    `${expert}.weight`,
    'backbone.layers.1.mixer.gate.e_score_correction_bias',
    'backbone.layers.2.mixer.k_proj.weight',
    'backbone.layers.3.norm.weight',
  ])('%s is missing', async (name) => {
    const tensors: Tensors = microTensors()
    delete tensors[name]
    const folder = await folderOf(tensors)
    await expectFailure(folder, 'BAD_FORMAT', name.replace(/\.weight$/, ''), folder)
  })

  test('unknown tensors', async () => {
    const name = 'backbone.layers.0.mixer.rotary.weight'
    const folder = await folderOf({ ...microTensors(), [name]: zeros('BF16', 4) })
    await expectFailure(folder, 'BAD_FORMAT', name, join(folder, 'model.safetensors'))
  })

  test.each<[string, TestTensor]>([
    [`${inProj}.weight`, zeros('BF16', 246, 31)],
    ['backbone.layers.0.mixer.conv1d.weight', zeros('BF16', 144, 4)],
    ['backbone.layers.2.mixer.o_proj.weight', zeros('BF16', 96, 32)],
    ['backbone.layers.0.mixer.D', zeros('BF16', 6, 1)],
    ['backbone.embeddings.weight', zeros('BF16', 65, 32)],
    ['backbone.layers.0.mixer.dt_bias', zeros('I32', 6)],
    ['lm_head.weight', zeros('F64', 64, 32)],
  ])('%s has another shape or dtype', async (name, tensor) => {
    const folder = await folderOf({ ...microTensors(), [name]: tensor })
    await expectFailure(folder, 'BAD_FORMAT', name, join(folder, 'model.safetensors'))
  })

  test.each([0x7f, 0xff, 0xb8])('an NVFP4 block scale is %i: NaN or negative', async (bits) => {
    const tensors: Tensors = quantized('nvfp4')
    const name = `${expert}.weight_scale`
    const { dtype, shape } = tensors[name] as TestTensor
    const data = new Uint8Array(shape.reduce((product, extent) => product * extent))
    data[17] = bits
    tensors[name] = { dtype, shape, data }
    const folder = await folderOf(tensors, sidecar('NVFP4'))
    await expectFailure(folder, 'BAD_FORMAT', name, join(folder, 'model.safetensors'), '17')
  })

  test.each([Number.NaN, Number.POSITIVE_INFINITY, -1])('scales of a whole tensor are %f', async (value) => {
    for (const [format, algorithm, name] of [
      ['nvfp4', 'NVFP4', `${inProj}.weight_scale_2`],
      ['fp8', 'FP8', `${inProj}.weight_scale`],
      ['nvfp4', 'NVFP4', `${inProj}.input_scale`],
    ] as const) {
      const folder = await folderOf({ ...quantized(format), [name]: f32([value]) }, sidecar(algorithm))
      await expectFailure(folder, 'BAD_FORMAT', name, join(folder, 'model.safetensors'))
    }
  })

  test('a truncated file', async () => {
    const whole = buildSafetensors(microTensors())
    for (const bytes of [0, 7, 100, whole.length - 1]) {
      const files = { 'config.json': microConfig, 'model.safetensors': whole.subarray(0, bytes) }
      const folder = await folderWith(files)
      await expectFailure(folder, 'BAD_FORMAT', join(folder, 'model.safetensors'))
    }
  })
})

describe('loadModel', () => {
  test('refuses before it allocates what does not fit the memory', async () => {
    const huge = { contextLength: 2 ** 21, maxBatch: 512, exact: true }
    const error = await expectError(
      () => loadModel('tiny', huge),
      'OUT_OF_MEMORY',
      'contextLength 2097152',
      'maxBatch 512',
    )
    expect(error.details?.needed).toBeGreaterThan(1e12)
    expect(allocated()).toBe(before)
  })

  test.each([1, 2, 5])('an abort at its %i. report of progress stops it and frees what it took', async (at) => {
    const abort = new AbortController()
    const reason = new Error('no longer wanted')
    let reports = 0
    const onProgress = () => {
      reports += 1
      if (reports === at) abort.abort(reason)
    }
    await expect(loadModel('tiny', { ...small, signal: abort.signal, onProgress })).rejects.toBe(reason)
    expect(reports).toBe(at)
    await expect.poll(allocated).toBe(before)
  })

  test('a callback that throws rejects the load and frees what it took', async () => {
    const failure = new Error('thrown by a callback')
    const onProgress = () => {
      throw failure
    }
    await expect(loadModel(fixture, { ...small, onProgress })).rejects.toBe(failure)
    await expect.poll(allocated).toBe(before)
  })

  test('a broken tokenizer fails the load by name and frees what it took', async () => {
    const files = ['config.json', 'model.safetensors'].map((name) => [name, readFileSync(join(fixture, name))] as const)
    const folder = await folderWith({ ...Object.fromEntries(files), 'tokenizer.json': '{"model":' })
    await expectFailure(folder, 'BAD_FORMAT', join(folder, 'tokenizer.json'))
  })
})
