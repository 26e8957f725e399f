import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { packageRuntime } from '../../lib/cli/runtime.js'
import type { Evaluation } from '../../lib/cli/tasks.js'
import { cli } from '../helpers/fake-cli.js'

const teacher = process.env.NIBBLET_TEACHER
const full = process.env.NIBBLET_FULL === '1'
const tasks = fileURLToPath(new URL('../../models/tiny/heldout.jsonl', import.meta.url))

/** Runs `nibblet eval` on the real model, in this process. */
async function evaluate(model: string, ...flags: string[]): Promise<Evaluation> {
  const argv = ['eval', model, '--tasks', tasks, '--json', '--threads', '2', ...flags]
  const started = performance.now()
  const { code, out, err } = await cli({ argv, runtime: packageRuntime })
  expect({ code, err }).toEqual({ code: 0, err: '' })
  const result = JSON.parse(out) as Evaluation
  const rate = ({ n, exact }: Evaluation['direct']) => `${exact.toFixed(4)} of ${n}`
  const seconds = ((performance.now() - started) / 1000).toFixed(0)
  console.log(`eval ${model}: thinking ${rate(result.thinking)}, direct ${rate(result.direct)}, ${seconds} s`)
  return result
}

describe('held-out tasks', () => {
  // PyTorch on these weights: 0.9685 thinking and 0.8878 direct on all tasks. Of 52 and 48 drawn from such, the bounds (at
  // most 7 and 13 wrong) are missed with probabilities of 0.0002 and 0.0006.
  test('the bundled model on the first 100', { timeout: 240_000 }, async () => {
    const { thinking, direct } = await evaluate('tiny', '--limit', '100')
    expect([thinking.n, direct.n]).toEqual([52, 48])
    expect(thinking.exact).toBeGreaterThanOrEqual(0.86)
    expect(direct.exact).toBeGreaterThanOrEqual(0.72)
  })

  const unless = full ? '' : ' (skipped: NIBBLET_FULL=1 runs it)'
  test.skipIf(!full)(`the bundled model on all 1,200${unless}`, { timeout: 3_600_000 }, async () => {
    const { thinking, direct } = await evaluate('tiny')
    expect(thinking.n + direct.n).toBe(1200)
    expect(thinking.exact).toBeGreaterThanOrEqual(0.96)
    expect(direct.exact).toBeGreaterThanOrEqual(0.88)
  })

  const untaught = full && teacher === undefined ? ' (skipped: NIBBLET_TEACHER is unset)' : unless
  test.skipIf(!full || !teacher)(`the BF16 teacher on all 1,200${untaught}`, { timeout: 3_600_000 }, async () => {
    const { thinking, direct } = await evaluate(teacher ?? '')
    expect(thinking.n + direct.n).toBe(1200)
    expect(thinking.exact).toBeGreaterThanOrEqual(0.965)
    expect(direct.exact).toBeGreaterThanOrEqual(0.885)
  })
})
