import { describe, expect, test } from 'vitest'
import { rounds, runChild } from '../helpers/child.js'

async function endWorkers(how: string, task: string, count: number) {
  const { code, signal, stdout, stderr } = await runChild('workers', [how, task, String(count)], ['--expose-gc'])
  expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' })
  const result = JSON.parse(stdout) as { codes: number[]; rss: number[]; allocated: number[] }
  expect(result.allocated).toEqual(result.allocated.map(() => 0))
  return result
}

/** The growth of a series from a third of its way to its end: the first rounds fill what processes keep for reuse. */
function growth(series: readonly number[]): number {
  return (series.at(-1) ?? 0) - (series[Math.floor(series.length / 3)] ?? 0)
}

describe('worker threads that end in mid-stream', () => {
  test('terminate(), fifteen times', async () => {
    const { codes, rss } = await endWorkers('terminate', 'micro', 15)
    expect(codes).toEqual(Array(15).fill(1))
    expect(growth(rss)).toBeLessThan(60e6)
  }, 120_000)

  test('terminate() with the bundled model', async () => {
    const count = rounds(15, 1)
    const { codes, rss } = await endWorkers('terminate', 'tiny', count)
    expect(codes).toEqual(Array(count).fill(1))
    if (count > 1) expect(growth(rss)).toBeLessThan(100e6)
  }, 180_000)

  test('process.exit() in a worker', async () => {
    const count = rounds(15, 3)
    const { codes } = await endWorkers('exit', 'micro', count)
    expect(codes).toEqual(Array(count).fill(3))
  }, 120_000)

  test('an uncaught exception in a worker', async () => {
    const count = rounds(15, 2)
    const { codes } = await endWorkers('throw', 'micro', count)
    expect(codes).toEqual(Array(count).fill(1))
  }, 120_000)
})

test('four workers and the main thread generate at once, each the right answer', async () => {
  const { code, signal, stdout, stderr } = await runChild('workers', ['answers'])
  expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' })
  const { here, there, allocated } = JSON.parse(stdout) as { here: string[]; there: string[][]; allocated: number }
  const [text, ...ids] = here
  expect(text).toBe('938')
  expect(there).toEqual([ids, ids, ids, ids])
  expect(allocated).toBe(0)
}, 120_000)
