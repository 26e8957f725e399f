import { expect, test } from 'vitest'
import { rounds, runChild } from '../helpers/child.js'

type Held = Record<'rss' | 'heap' | 'external' | 'allocated' | 'files' | 'threads' | 'mappings', number>

const middle = (values: readonly number[]) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN

/** How much more the last quarter of the cycles held than the second one; the first fills what is kept for reuse. */
function growth(held: readonly Held[], what: keyof Held): number {
  const part = (quarter: number) =>
    held.slice(Math.floor((held.length * quarter) / 4), Math.floor((held.length * (quarter + 1)) / 4))
  const of = (quarter: number) => middle(part(quarter).map((one) => one[what]))
  return of(3) - of(1)
}

test('models that come and go leave nothing behind', { timeout: 3_700_000 }, async () => {
  const [micro, tiny] = [rounds(400, 16), rounds(40, 1)]
  const limit = 3_600_000
  const { code, signal, stdout, stderr } = await runChild('soak', [`${micro}`, `${tiny}`], ['--expose-gc'], limit)
  expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' })
  const held = JSON.parse(stdout) as Held[]
  expect(held).toHaveLength(micro)
  expect(held.map(({ allocated }) => allocated)).toEqual(held.map(() => 0))
  const grown = Object.fromEntries(
    (['rss', 'heap', 'external', 'files', 'threads', 'mappings'] as const).map((what) => [what, growth(held, what)]),
  )
  const last = held.at(-1) as Held
  console.log(
    `${micro} cycles of two micro models, ${tiny} of tiny: resident ${(last.rss / 1e6).toFixed(0)} MB, growth over the ` +
      `second half ${JSON.stringify(grown)}`,
  )
  // Of a process that holds 150 MB; one micro model that stayed in each cycle would be 40 MB more over 400.
  expect(grown.rss).toBeLessThan(rounds(16e6, 40e6))
  expect(grown.heap).toBeLessThan(2e6)
  expect(grown.external).toBeLessThan(1e6)
  expect(grown.files).toBeLessThanOrEqual(0)
  expect(grown.threads).toBeLessThanOrEqual(0)
  expect(grown.mappings).toBeLessThan(40)
})
