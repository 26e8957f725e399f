import { expect, it } from 'vitest'
import { describeReport } from '../../bench/report.js'
import type { BenchResult } from '../../lib/bench/bench.js'
import { cli } from '../helpers/fake-cli.js'

const result: BenchResult = {
  model: 'tiny',
  device: 'cpu',
  variant: 'avx2',
  threads: 2,
  batch: 1,
  contextLength: 1088,
  runs: 5,
  rooflineGBs: 30,
  rooflineBytes: 2 ** 32,
  cacheRooflineGBs: 60,
  decode: {
    tokensPerSecond: 1500,
    bytesPerToken: 20e6,
    rooflineShare: 1,
    cacheRooflineShare: 0.5,
    jsShare: 0.04,
    jsMillisecondsPerStep: 0.02,
  },
  prefill: { tokens: 1024, tokensPerSecond: 6000 },
  load: {
    seconds: 0.25,
    bytes: 5e8,
    GBs: 2,
    openSeconds: 0.01,
    weightsSeconds: 0.2,
    warmUpSeconds: 0.04,
    firstTokenSeconds: 0.012,
  },
  loadAverage: { before: 0.1, after: 2 },
  memoryBytes: 1e8,
  peakResidentBytes: null,
  processThreads: 14,
  eventLoopDelay: { p50: 0.1, p99: 1.25, max: 7 },
}

it('a model that fits a cache stands beside what the cache reads, in the table and on the terminal', async () => {
  const text = describeReport({
    cpu: 'A processor',
    variant: 'avx2',
    threads: 2,
    load: { before: 0, after: 0 },
    rooflineGBs: 30,
    rooflineBytes: 2 ** 32,
    ops: [],
    models: [result],
    skipped: [],
  })
  expect(text).toContain('| tiny | 0.25, first token 0.01 later | 6000 over 1024 | 1500 |')
  expect(text).toContain("| 100 %; 50 % of the cache's 60.0 GB/s |")
  const { out } = await cli({ argv: ['bench', 'tiny'], runtime: { bench: async () => result } })
  expect(out).toContain("60.0 GB/s over a token's bytes")
  expect(out).toContain("20.0 MB, 100.0 % of the roofline, 50.0 % of the cache's\n")
  expect(out).toMatch(
    /load +0\.25 s \(0\.01 open, 0\.20 weights, 0\.04 warm-up\), 2\.0 GB\/s, first token 12\.0 ms later\n/,
  )
})
