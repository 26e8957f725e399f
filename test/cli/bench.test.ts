import { describe, expect, it } from 'vitest'
import { type BenchOptions, type BenchResult, bench } from '../../lib/bench/bench.js'
import { measureRoofline } from '../../lib/bench/roofline.js'
import { denseBytes } from '../../lib/bench/step-bytes.js'
import { Checkpoint } from '../../lib/checkpoint/checkpoint.js'
import { Device } from '../../lib/core/device.js'
import { expectError } from '../helpers/expect-error.js'
import { cli } from '../helpers/fake-cli.js'

const report = { zeros: 0.907, expertsTouched: { min: 5, mean: 6.5, max: 8, of: 16 }, tokens: 9, weightBytes: 1e6 }
const result: BenchResult = {
  model: 'm',
  device: 'cpu',
  variant: 'avx2',
  threads: 2,
  batch: 1,
  contextLength: 40,
  runs: 3,
  rooflineGBs: 40,
  rooflineBytes: 2 ** 30,
  decode: {
    tokensPerSecond: 10,
    bytesPerToken: 2e9,
    rooflineShare: 0.5,
    jsShare: 0.01,
    jsMillisecondsPerStep: 1,
    graphKernels: 160,
    gpuIdleMicroseconds: { median: 8.25, p95: 12 },
  },
  prefill: { tokens: 32, tokensPerSecond: 64.25 },
  load: { seconds: 1.5, bytes: 5e8, GBs: 2, openSeconds: 0.01, weightsSeconds: 0.2, warmUpSeconds: 0.04 },
  loadAverage: { before: 0.1, after: 2 },
  memoryBytes: 3e9,
  peakResidentBytes: 4e9,
  processThreads: 14,
  eventLoopDelay: { p50: 0.1, p99: 1.25, max: 7 },
  experts: { prefill: report, decode: report },
}

function command(...argv: string[]) {
  const calls: [name: string, options: BenchOptions][] = []
  const runtime = {
    bench: async (name: string, options: BenchOptions) => {
      calls.push([name, options])
      return result
    },
  }
  return cli({ argv: ['bench', ...argv], runtime }).then((done) => ({ ...done, calls }))
}

describe('nibblet bench', () => {
  it('passes its flags on', async () => {
    const { code, calls } = await command(
      'm',
      '--prompt=32',
      '--generate=8',
      '--context=40',
      '--batch=2',
      '--threads=1',
    )
    expect(code).toBe(0)
    expect(calls).toMatchObject([['m', { prompt: 32, generate: 8, contextLength: 40, batch: 2, threads: 1 }]])
  })

  it('prints JSON with every agreed key, or a table', async () => {
    const json = await command('m', '--json')
    expect(JSON.parse(json.out)).toEqual(result)
    const { out } = await command('m')
    expect(out).toContain('40.0 GB/s in reads of 1.00 GiB (4 GiB where memory allows)')
    expect(out).toContain('10.00 tokens/s, best of 3')
    expect(out).toContain('2.00 GB, 50.0 % of the roofline')
    expect(out).toContain('load average 0.1 before, 2.0 after')
    expect(out).toContain('64.25 tokens/s over 32')
    expect(out).toMatch(/GPU idle +8\.3 µs a step, 5 % above 12\.0 µs\n/)
    expect(out).toMatch(/peak +4\.00 GB resident\n/)
    expect(out).toMatch(/threads +14 in the process\n/)
    expect(out).toMatch(/event loop +late by 0\.1 ms, 1\.3 ms in the worst 1 %, 7\.0 ms at most\n/)
    expect(out).toContain('90.7 % zeros, 5 to 8 of 16 experts a layer (mean 6.5) in 9 tokens')
  })

  it('refuses sizes that make no sense', async () => {
    for (const flag of ['--prompt=0', '--generate=1', '--batch=0', '--context=x', '--context-length=64']) {
      expect(await command('m', flag), flag).toMatchObject({ code: 2, calls: [] })
    }
  })
})

it('nibblet synth passes its flags on', async () => {
  const argv = ['synth', 'nano-micro', '/out', '--relu-zeros', '0.5', '--seed', '3', '--force']
  const { code, err, calls } = await cli({ argv })
  expect(code).toBe(0)
  expect(err).toContain('Wrote /out.')
  expect(calls.synthesized).toMatchObject([['nano-micro', '/out', { reluZeros: 0.5, seed: 3, force: true }]])
  expect((await cli({ argv: ['synth', 'nano-micro', '/out', '--relu-zeros=1'] })).code).toBe(2)
  expect((await cli({ argv: ['synth', 'nano-micro'] })).code).toBe(2)
})

describe('bench()', () => {
  const small = { prompt: 24, generate: 6, threads: 2, rooflineBytes: 8 << 20 }

  it('measures the synthetic micro model, alone and in a batch', async () => {
    const alone = await bench('synthetic:nano-micro', small)
    expect(alone).toMatchObject({ device: 'cpu', threads: 2, batch: 1, contextLength: 30, rooflineBytes: 8 << 20 })
    expect(alone.prefill.tokens).toBe(24)
    const { seconds, bytes, GBs, openSeconds, weightsSeconds, warmUpSeconds } = alone.load
    expect(bytes).toBeGreaterThan(1e6)
    expect(GBs).toBeCloseTo(bytes / seconds / 1e9, 10)
    for (const part of [openSeconds, weightsSeconds, warmUpSeconds]) expect(part).toBeGreaterThan(0)
    expect(openSeconds + weightsSeconds + warmUpSeconds).toBeLessThanOrEqual(seconds)
    const { decode } = alone
    expect(decode.rooflineShare).toBeCloseTo(
      (decode.bytesPerToken * decode.tokensPerSecond) / alone.rooflineGBs / 1e9,
      10,
    )
    expect(decode.jsShare).toBeGreaterThan(0)
    expect(decode.jsShare).toBeLessThan(1)
    expect(decode).not.toHaveProperty('gpuIdleMicroseconds')
    expect(alone.memoryBytes).toBeGreaterThan(4e6)
    // Node's own, the engine's and the pool's.
    expect(alone.processThreads ?? Number.POSITIVE_INFINITY).toBeGreaterThan(3)
    const { p50, p99, max } = alone.eventLoopDelay
    expect([p50, p99, max].toSorted((a, b) => a - b)).toEqual([p50, p99, max])
    expect(p50).toBeGreaterThanOrEqual(0)
    expect(alone.experts?.decode).toMatchObject({ tokens: 5 })
    // 24 tokens choose 4 of 16 experts: routing that collapsed would touch few of them.
    expect(alone.experts?.prefill.expertsTouched.min).toBeGreaterThan(11)
    expect(alone.experts?.prefill.zeros).toBeGreaterThan(0.88)
    expect(alone.experts?.prefill.zeros).toBeLessThan(0.93)

    const batched = await bench('synthetic:nano-micro?relu-zeros=0.5', { ...small, batch: 3 })
    expect(batched.batch).toBe(3)
    expect(batched.experts?.decode.tokens).toBe(15)
    expect(batched.experts?.prefill.zeros).toBeCloseTo(0.5, 1)
    // Weights that all rows share count once a step.
    expect(batched.decode.bytesPerToken).toBeLessThan(decode.bytesPerToken)
  })

  it('measures a model without counting what it does not touch', async () => {
    const { decode, memoryBytes } = await bench('synthetic:nano-micro', { ...small, exact: true, generate: 3 })
    expect(decode.bytesPerToken).toBeGreaterThan(1e6)
    expect(decode.bytesPerToken).toBeLessThan(memoryBytes)
    const { tensors } = Checkpoint.synthetic('nano-30b')
    // All but experts and the embedding table, to which vectors add a little, since they are kept in float32.
    const trunk = 2_558_227_600 - 704_643_072
    expect(denseBytes(tensors.values()) / trunk).toBeCloseTo(1, 2)
  })

  it('refuses sizes that do not go together', async () => {
    await expectError(() => bench('tiny', { generate: 1 }), 'INVALID_OPTION', 'generate')
    await expectError(() => bench('tiny', { batch: 0.5 }), 'INVALID_OPTION', 'batch')
    await expectError(() => bench('tiny', { contextLength: 100 }), 'CONTEXT_OVERFLOW', '512')
  })
})

it('a roofline is a plausible speed, whatever the size', async () => {
  const device = Device.open('cpu')
  for (const bytes of [1 << 20, (4 << 20) + 700]) {
    const roofline = await measureRoofline(device, { threads: 2, bytes })
    expect(roofline.bytes).toBe(Math.floor(bytes / 512) * 512)
    expect(roofline.gigabytesPerSecond).toBeGreaterThan(0.01)
    expect(roofline.gigabytesPerSecond).toBeLessThan(10_000)
  }
})
