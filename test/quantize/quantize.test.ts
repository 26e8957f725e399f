import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { Device } from '../../lib/core/device.js'
import { score } from '../../lib/engine/score.js'
import { quantizeCheckpoint } from '../../lib/quantize/quantize.js'
import { decodeNvfp4 } from '../helpers/decode-nvfp4.js'
import { expectError } from '../helpers/expect-error.js'
import { readGoldens, relativeError } from '../helpers/goldens.js'
import { microConfig, microTensors } from '../helpers/micro-checkpoint.js'
import { withRunner } from '../helpers/open-runner.js'
import { readTensors } from '../helpers/read-tensors.js'
import { buildSafetensors, folderWith, type TestTensor } from '../helpers/safetensors.js'

const teacher = process.env.NIBBLET_TEACHER
const fixture = (name: string) => fileURLToPath(new URL(`../fixtures/micro/${name}`, import.meta.url))
const tiny = fileURLToPath(new URL('../../models/tiny', import.meta.url))
const nvfp4 = { format: 'nvfp4', threads: 2 } as const

function digest(file: string): string {
  return createHash('sha256').update(readFileSync(file)).digest('hex')
}

/** The tensors of a quantised folder with every NVFP4 matrix as the float32 values that it stands for. */
async function dequantized(folder: string): Promise<Record<string, TestTensor>> {
  const tensors = await readTensors(folder)
  const result: Record<string, TestTensor> = {}
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    const [blockScales, global] = [tensors[`${name}_scale`], tensors[`${name}_scale_2`]]
    if (blockScales && global) {
      const scale = new DataView(Uint8Array.from(global.data).buffer).getFloat32(0, true)
      const values = decodeNvfp4(data, blockScales.data, scale)
      const [out = 0, half = 0] = shape
      result[name] = { dtype: 'F32', shape: [out, 2 * half], data: new Uint8Array(values.buffer) }
    } else if (!/_scale(_2)?$/.test(name)) {
      result[name] = { dtype, shape, data }
    }
  }
  return result
}

/** A folder of its own for outputs. */
const outputs = () => folderWith()

describe('quantizeCheckpoint', () => {
  const skipped = teacher === undefined ? ' (skipped: NIBBLET_TEACHER is unset)' : ''
  test.skipIf(teacher === undefined)(`makes the bundled model from the teacher, byte for byte${skipped}`, async () => {
    const out = join(await outputs(), 'tiny')
    const progress: number[] = []
    const onProgress = ({ loaded, total }: { loaded: number; total: number }) => progress.push(loaded / total)
    const result = await quantizeCheckpoint(teacher ?? '', out, { ...nvfp4, onProgress })
    for (const name of ['model.safetensors', 'config.json', 'hf_quant_config.json', 'tokenizer.json']) {
      expect(digest(join(out, name)), name).toBe(digest(join(tiny, name)))
    }
    expect(result).toMatchObject({ folder: out, matrices: 336 })
    expect(result.bytesAfter).toBeLessThan(0.6 * result.bytesBefore)
    expect(progress).toEqual([...progress].sort((a, b) => a - b))
    expect(progress.at(-1)).toBe(1)
  })

  test.each(['bf16-basic', 'bf16-fused-experts', 'bf16-attention-bias'])(
    '%s: the result computes with the values that its codes stand for',
    async (name) => {
      const out = join(await outputs(), 'out')
      const { matrices } = await quantizeCheckpoint(fixture(name), out, nvfp4)
      expect(matrices).toBeGreaterThan(0)
      const plain = await folderWith({
        'config.json': readFileSync(join(out, 'config.json')),
        'model.safetensors': buildSafetensors(await dequantized(out)),
      })
      for (const { ids } of readGoldens(fixture(name))) {
        const [got, expected] = await Promise.all(
          [out, plain].map((folder) =>
            withRunner(folder, 'exact', ({ runner }) => score(runner, ids, { last: ids.length })),
          ),
        )
        expect(relativeError(got?.logits ?? [], expected?.logits ?? [])).toBeLessThan(1e-5)
      }
    },
  )

  test('leaves matrices whose inputs are no multiple of 16 as they are, and lists them', async () => {
    const out = join(await outputs(), 'out')
    const { matrices } = await quantizeCheckpoint(fixture('bf16-odd'), out, nvfp4)
    const [before, after] = [await readTensors(fixture('bf16-odd')), await readTensors(out)]
    const kept = Object.entries(before).filter(([name, { dtype }]) => after[name]?.dtype === dtype)
    expect(kept.length + matrices).toBe(Object.keys(before).length)
    const sidecar = JSON.parse(readFileSync(join(out, 'hf_quant_config.json'), 'utf8'))
    const excluded = new Set<string>(sidecar.quantization.exclude_modules)
    for (const [name, { shape, data }] of kept) {
      expect(Buffer.compare(data, after[name]?.data ?? new Uint8Array()), name).toBe(0)
      if (!/_proj\.weight$/.test(name)) continue
      const module = name.replace(/\.weight$/, '')
      const pattern = module.replace(/\.\d+\.(up|down)_proj$/, '.*.$1_proj')
      expect(excluded.has(module) || excluded.has(pattern), name).toBe(true)
      const always = /[qkvo]_proj|in_proj|out_proj/.test(name)
      if (!always) expect((shape[1] ?? 0) % 16, name).not.toBe(0)
    }
    await withRunner(out, 'exact', async ({ runner }) => {
      const [golden] = readGoldens(fixture('bf16-odd'))
      expect((await score(runner, golden?.ids ?? new Uint32Array(), { last: 1 })).logits).toHaveLength(1)
    })
  })

  test('refuses an output that exists, and replaces it when told to', async () => {
    const folder = await outputs()
    const out = join(folder, 'out')
    await mkdir(out)
    await writeFile(join(out, 'notes.txt'), 'mine')
    await expectError(() => quantizeCheckpoint(fixture('bf16-basic'), out, nvfp4), 'OUTPUT_EXISTS', out, '--force')
    expect(readdirSync(out)).toEqual(['notes.txt'])
    await quantizeCheckpoint(fixture('bf16-basic'), out, { ...nvfp4, force: true })
    expect(readdirSync(out)).toContain('model.safetensors')
    expect(readdirSync(out)).not.toContain('notes.txt')
    expect(readdirSync(folder)).toEqual(['out'])
  })

  test('refuses its own input as the output, another format, and a quantised checkpoint', async () => {
    const out = join(await outputs(), 'out')
    const basic = fixture('bf16-basic')
    await expectError(
      () => quantizeCheckpoint(basic, basic, { ...nvfp4, force: true }),
      'INVALID_OPTION',
      'input folder',
    )
    const other = { ...nvfp4, format: 'fp8' as 'nvfp4' }
    await expectError(() => quantizeCheckpoint(basic, out, other), 'INVALID_OPTION', "'nvfp4'", "'fp8'")
    for (const name of ['nvfp4-modelopt', 'fp8-compressed-tensors']) {
      await expectError(() => quantizeCheckpoint(fixture(name), out, nvfp4), 'UNSUPPORTED_MODEL', 'quantised already')
    }
    expect(readdirSync(join(out, '..'))).toEqual([])
  })

  test('a NaN weight fails, named with its file, and leaves nothing behind', async () => {
    const tensors = microTensors()
    const name = 'backbone.layers.1.mixer.experts.2.down_proj.weight'
    const shape = [32, 16]
    const data = new Uint8Array(2 * 32 * 16)
    data.set([0xc0, 0x7f], 100)
    tensors[name] = { dtype: 'BF16', shape, data }
    const folder = await folderWith({ 'config.json': microConfig, 'model.safetensors': buildSafetensors(tensors) })
    const parent = await outputs()
    const before = Device.open('cpu').memory().allocated
    await expectError(
      () => quantizeCheckpoint(folder, join(parent, 'out'), nvfp4),
      'BAD_FORMAT',
      name,
      join(folder, 'model.safetensors'),
      'NaN or infinity',
    )
    expect(readdirSync(parent)).toEqual([])
    await expect.poll(() => Device.open('cpu').memory().allocated).toBe(before)
  })

  test('an abort leaves nothing behind, and an earlier output as it was', async () => {
    const parent = await outputs()
    const out = join(parent, 'out')
    await quantizeCheckpoint(fixture('bf16-basic'), out, nvfp4)
    const whole = digest(join(out, 'model.safetensors'))
    const before = Device.open('cpu').memory().allocated
    for (const at of [1, 40]) {
      const abort = new AbortController()
      const reason = new Error('enough')
      let calls = 0
      const onProgress = () => {
        calls += 1
        if (calls === at) abort.abort(reason)
      }
      const options = { ...nvfp4, force: true, signal: abort.signal, onProgress }
      await expect(quantizeCheckpoint(fixture('bf16-basic'), out, options)).rejects.toBe(reason)
    }
    const early = { ...nvfp4, force: true, signal: AbortSignal.abort('never began') }
    await expect(quantizeCheckpoint(fixture('bf16-basic'), out, early)).rejects.toBe('never began')
    expect(readdirSync(parent)).toEqual(['out'])
    expect(digest(join(out, 'model.safetensors'))).toBe(whole)
    await expect.poll(() => Device.open('cpu').memory().allocated).toBe(before)
  })
})
