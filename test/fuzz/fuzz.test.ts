import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { rounds } from '../helpers/child.js'
import { randomOf } from '../helpers/mutate.js'
import { describeFuzz, runFuzz } from './fuzz.js'
import { mutate } from './mutations.js'
import { type Subject, subjects } from './subjects.js'

test('damaged model folders answer or end in an error that names the file', { timeout: 1_800_000 }, async () => {
  const [seed, count] = [rounds(Date.now() % 1e9, 1122), rounds(3_000, 200)]
  const result = await runFuzz({ seed, count, caseLimit: 300_000, keep: 'build/fuzz-failures' })
  console.log(describeFuzz(result, seed))
  expect(result.failures, `npm run fuzz -- --seed ${seed} --count ${count} repeats it`).toEqual([])
  expect(result.cases).toBe(count)
  // Neither everything is refused nor everything let pass.
  expect((result.outcomes.answered ?? 0) / count).toBeGreaterThan(0.1)
  expect((result.outcomes.BAD_FORMAT ?? 0) / count).toBeGreaterThan(0.3)
})

test('a case is made from the seed and its number alone', () => {
  const subject = subjects[3] as Subject
  const make = (seed: number) => mutate(subject, randomOf(seed)).map(({ file, what }) => `${file}: ${what}`)
  expect(make(7)).toEqual(make(7))
  expect(make(7)).not.toEqual(make(8))
})

test('what fails is told, and the rest still runs', { timeout: 120_000 }, async () => {
  const keep = await mkdtemp(join(tmpdir(), 'nibblet-fuzz-kept-'))
  try {
    // A process that never gets to its first case.
    const env = { NIBBLET_BINARY: join(keep, 'missing.node') }
    const { cases, failures } = await runFuzz({ seed: 1, count: 4, caseLimit: 60_000, keep, env })
    expect(cases).toBe(1)
    expect(failures).toMatchObject([{ index: 0, subject: 'before it began' }])
    expect(failures[0]?.problem).toContain('missing.node')
    // Processes that hang in every case: each is noted, and the next one runs in another process.
    const hang = `import fs from 'node:fs'; import { syncBuiltinESMExports } from 'node:module';
      fs.rmSync = () => { for (;;); }; syncBuiltinESMExports()`
    const hanging = { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(hang)}` }
    const late = await runFuzz({ seed: 1, count: 2, caseLimit: 300, keep, env: hanging })
    expect(late.cases).toBe(2)
    expect(late.failures.map(({ index }) => index)).toEqual([0, 1])
    expect(late.failures[0]?.problem).toContain('nothing came for 300 ms')
  } finally {
    await rm(keep, { recursive: true, force: true })
  }
})
