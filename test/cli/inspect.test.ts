import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { packageRuntime } from '../../lib/cli/runtime.js'
import { cli } from '../helpers/fake-cli.js'

const fixture = (name: string) => fileURLToPath(new URL(`../fixtures/micro/${name}`, import.meta.url))
const inspect = (...argv: string[]) => cli({ argv: ['inspect', ...argv], runtime: packageRuntime })

describe('inspect', () => {
  test('shows layers, formats, bytes and memory as JSON', async () => {
    const { code, out, err } = await inspect(fixture('nvfp4-modelopt'), '--json')
    expect({ code, err }).toEqual({ code: 0, err: '' })
    const report = JSON.parse(out)
    expect(report.layers.total).toBe(report.layers.order.length)
    expect(report.layers.kinds).toEqual({ mamba: 2, moe: 2, attention: 1 })
    expect(report.quantization).toEqual({ method: 'modelopt', algorithm: 'NVFP4' })
    expect(Object.keys(report.formats)).toContain('nvfp4')
    expect(report.memory).toMatchObject({ contextLength: report.maxPositions, maxBatch: 8, kvCache: 'fp8' })
    expect(report.memory.total).toBe(report.memory.weights + report.memory.cache)
  })

  test('memory follows the flags', async () => {
    const memory = async (...flags: string[]) =>
      JSON.parse((await inspect(fixture('bf16-basic'), '--json', ...flags)).out).memory
    const [fp8, bf16, exact, short] = await Promise.all([
      memory(),
      memory('--kv-cache', 'bf16'),
      memory('--exact'),
      memory('--context-length', '64', '--max-batch', '1'),
    ])
    expect(bf16.cache).toBeGreaterThan(fp8.cache)
    expect(exact.cache).toBeGreaterThan(bf16.cache)
    expect(exact.kvCache).toBe('f32')
    expect(short.cache).toBeLessThan(fp8.cache)
  })

  test('the table', async () => {
    const { out } = await inspect(fixture('fp8-modelopt'))
    for (const word of ['folder', 'layers', 'quantization', 'parameters', 'fp8', 'memory', 'caches'])
      expect(out).toContain(word)
  })

  test('a context beyond the trained one is counted all the same; a folder that is none lists what was tried', async () => {
    expect((await inspect(fixture('bf16-basic'), '--context-length', '99999999')).code).toBe(0)
    const missing = await inspect('no-such-model')
    expect(missing.code).toBe(1)
    expect(missing.err).toMatch(
      /no-such-model.*\n {2}a bundled model.*\n {2}\/.*no-such-model: no such folder[\s\S]*MODEL_NOT_FOUND/,
    )
  })
})
