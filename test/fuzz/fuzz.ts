import { spawn } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { keepFiles } from './keep.js'

const root = fileURLToPath(new URL('../../', import.meta.url))

export interface FuzzOptions {
  seed: number
  /** Cases `first` to `first + count - 1` are run: each is made from the seed and its own number alone. */
  first?: number
  count: number
  /** Processes at once. Default 1. */
  jobs?: number
  /** Milliseconds that one case may take. */
  caseLimit: number
  /** Where folders of failing cases are kept. */
  keep: string
  /** For the processes, beside the environment of this one. */
  env?: Record<string, string>
  onProgress?: (done: number) => void
}

export interface FuzzFailure {
  index: number
  subject: string
  what: string
  problem: string
  /** The folder as it was. */
  folder: string
}

export interface FuzzResult {
  cases: number
  /** How many ended so, by error code or `answered`. */
  outcomes: Record<string, number>
  failures: FuzzFailure[]
  /** The slowest case that ended. */
  slowest: { index: number; milliseconds: number }
}

type Line =
  | { type: 'ready' }
  | { type: 'start'; index: number; subject: string; what: string }
  | { type: 'end'; index: number; outcome: string }
  | { type: 'problem'; index: number; problem: string; kept: string }
  | { type: 'finished' }

const mostFailures = 20
/** Starting a process, with a sanitizer on a busy machine. */
const startLimit = 120_000

/**
 * Runs cases in processes of their own, so that a crash or a hang is one more outcome: the case is noted, its folder kept,
 * and the rest runs in the next process.
 */
export async function runFuzz(options: FuzzOptions): Promise<FuzzResult> {
  const { first = 0, count, jobs = 1 } = options
  const result: FuzzResult = { cases: 0, outcomes: {}, failures: [], slowest: { index: -1, milliseconds: 0 } }
  const share = Math.ceil(count / jobs)
  const parts = Array.from({ length: jobs }, (_, job) => ({
    from: first + job * share,
    to: Math.min(first + (job + 1) * share, first + count),
  }))
  await Promise.all(
    parts.map(async ({ from, to }) => {
      for (let next = from; next < to && result.failures.length < mostFailures; ) {
        next = await runProcess(options, next, to, result)
      }
    }),
  )
  result.failures.sort((a, b) => a.index - b.index)
  return result
}

/** Runs cases until all are done or the process ends; returns the next one to run. */
async function runProcess(options: FuzzOptions, from: number, to: number, result: FuzzResult): Promise<number> {
  const { seed, caseLimit, keep, env, onProgress } = options
  const work = await mkdtemp(join(tmpdir(), 'nibblet-fuzz-'))
  const script = fileURLToPath(new URL('./child.ts', import.meta.url))
  const child = spawn(process.execPath, ['--import', 'tsx', script, String(seed), String(from), String(to), work], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, NODE_OPTIONS: '', ...env },
  })
  const exited = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once('close', (code, signal) => resolve(signal ?? `exit code ${code}`))
  })
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr = (stderr + text).slice(-20_000)
  })
  let current: Extract<Line, { type: 'start' }> | undefined
  let ready = false
  let finished = false
  let late = false
  let next = from
  let startedAt = performance.now()
  let timer: NodeJS.Timeout | undefined
  const expect = (limit: number) => {
    clearTimeout(timer)
    startedAt = performance.now()
    timer = setTimeout(() => {
      late = true
      child.kill('SIGKILL')
    }, limit)
  }
  expect(startLimit)
  const failed = async (problem: string, folder: string) => {
    const { index, subject, what } = current ?? { index: next, subject: 'before it began', what: '' }
    const kept = join(keep, `${seed}-${index}`)
    keepFiles(folder, kept)
    await writeFile(join(kept, 'problem.txt'), `seed ${seed}, case ${index}: ${subject}: ${what}\n\n${problem}\n`)
    result.failures.push({ index, subject, what, problem, folder: kept })
    result.cases += 1
    next = index + 1
  }
  for await (const text of createInterface({ input: child.stdout })) {
    const line = JSON.parse(text) as Line
    if (line.type === 'ready') {
      ready = true
    } else if (line.type === 'start') {
      current = line
      expect(caseLimit)
    } else if (line.type === 'end') {
      const milliseconds = performance.now() - startedAt
      if (milliseconds > result.slowest.milliseconds) result.slowest = { index: line.index, milliseconds }
      result.outcomes[line.outcome] = (result.outcomes[line.outcome] ?? 0) + 1
      result.cases += 1
      next = line.index + 1
      current = undefined
      onProgress?.(result.cases)
    } else if (line.type === 'problem') {
      await failed(line.problem, line.kept)
      current = undefined
      if (result.failures.length >= mostFailures) child.kill('SIGKILL')
    } else {
      finished = true
      expect(startLimit)
    }
  }
  const ended = await exited
  clearTimeout(timer)
  const enough = result.failures.length >= mostFailures
  if ((!finished || ended !== 'exit code 0') && !enough) {
    const reason = late ? `nothing came for ${caseLimit} ms` : `the process ended with ${ended}`
    await failed(`${reason}\n${stderr}`, current === undefined ? work : join(work, current.subject))
    // The next process would do no better.
    if (!ready) next = to
  }
  await rm(work, { recursive: true, force: true })
  return next
}

/** What a run found, for people. */
export function describeFuzz({ cases, outcomes, failures, slowest }: FuzzResult, seed: number): string {
  const counts = Object.entries(outcomes)
    .sort(([, a], [, b]) => b - a)
    .map(([outcome, count]) => `${count} ${outcome}`)
  const lines = failures.map(({ index, subject, what, problem, folder }) => {
    return `case ${index} (${subject}; ${what}), kept in ${basename(folder)}:\n${problem}\n`
  })
  return [
    `seed ${seed}: ${cases} damaged folders: ${counts.join(', ')}; ${failures.length} failures; ` +
      `slowest case ${slowest.index}: ${slowest.milliseconds.toFixed(0)} ms`,
    ...lines,
  ].join('\n')
}
