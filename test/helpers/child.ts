import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../../', import.meta.url))

/** How a child process ended, and what it wrote. */
export interface Ended {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

/** Runs `test/core/children/<name>.ts` in a process of its own. When it takes too long it is killed, which shows in `signal`. */
export function runChild(
  name: string,
  args: readonly string[] = [],
  flags: readonly string[] = [],
  limit = 120_000,
): Promise<Ended> {
  const script = fileURLToPath(new URL(`../core/children/${name}.ts`, import.meta.url))
  const child = spawn(process.execPath, [...flags, '--import', 'tsx', script, ...args], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    // Warnings are part of what is looked at; the runner's own flags are not for the child.
    env: { ...process.env, NODE_OPTIONS: '', NODE_NO_WARNINGS: '' },
  })
  const ended: Ended = { code: null, signal: null, stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text) => {
    ended.stdout += text
  })
  child.stderr.setEncoding('utf8').on('data', (text) => {
    ended.stderr += text
  })
  const timer = setTimeout(() => child.kill('SIGKILL'), limit)
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, signal) => {
      clearTimeout(timer)
      resolve({ ...ended, code, signal })
    })
  })
}

/** Runs tasks two at a time. */
export async function inPairs<T>(tasks: readonly (() => Promise<T>)[]): Promise<T[]> {
  const results: T[] = []
  let next = 0
  const work = async () => {
    for (let index = next++; index < tasks.length; index = next++) {
      results[index] = await (tasks[index] as () => Promise<T>)()
    }
  }
  await Promise.all([work(), work()])
  return results
}

/** How often a loop of the issue runs: always in `npm run test:full`, otherwise as often as the time allows. */
export function rounds(full: number, usual: number): number {
  return process.env.NIBBLET_FULL === '1' ? full : usual
}
