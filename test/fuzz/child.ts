// Runs cases of the fuzz test: `child.ts SEED FIRST LAST FOLDER`. Says on standard output, a JSON line each, which case
// begins, how it ended, and what was wrong; whoever started it watches the time.
import { execFileSync } from 'node:child_process'
import { mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { inspect } from 'node:util'
import { randomOf } from '../helpers/mutate.js'
import { exercise, type Resources, resources } from './exercise.js'
import { keepFiles } from './keep.js'
import { type Content, type Mutation, mutate } from './mutations.js'
import { type Subject, subjects } from './subjects.js'

const [seed = 0, first = 0, last = 0] = process.argv.slice(2, 5).map(Number)
const work = process.argv[5] ?? ''
// Synchronously: what is under way when the process dies must be known.
const say = (line: object) => writeSync(1, `${JSON.stringify(line)}\n`)

function place(path: string, content: Content): void {
  rmSync(path, { recursive: true, force: true })
  if (content === 'missing') return
  if (content === 'folder') mkdirSync(path)
  else if (content === 'pipe') execFileSync('mkfifo', [path])
  else if (content === 'loop') symlinkSync(path, path)
  else if (content === 'huge') {
    writeFileSync(path, '{"')
    truncateSync(path, 2 ** 33)
  } else writeFileSync(path, content)
}

const prepared = new Set<Subject>()
function prepare(subject: Subject, folder: string): void {
  if (prepared.has(subject)) return
  mkdirSync(folder, { recursive: true })
  for (const [file, bytes] of Object.entries(subject.files)) writeFileSync(join(folder, file), bytes)
  prepared.add(subject)
}

/** Worker threads and pools that go a moment later are no leak. */
async function leak(before: Resources, folder: string): Promise<string | undefined> {
  let now = resources(folder)
  const grew = () => (['allocated', 'files', 'threads', 'mapped'] as const).filter((kind) => now[kind] > before[kind])
  for (let wait = 1; grew().length > 0 && wait < 500; wait *= 2) {
    await new Promise((resolve) => setTimeout(resolve, wait))
    now = resources(folder)
  }
  return grew().length === 0 ? undefined : `left behind: ${inspect({ before, now }, { breakLength: Infinity })}`
}

async function run(index: number): Promise<void> {
  const random = randomOf(seed * 1_000_003 + index)
  const subject = subjects[index % subjects.length] as Subject
  const folder = join(work, subject.name)
  prepare(subject, folder)
  const mutations: Mutation[] = mutate(subject, random)
  const what = mutations.map((mutation) => `${mutation.file}: ${mutation.what}`).join(' | ')
  say({ type: 'start', index, subject: subject.name, what })
  for (const { file, content } of mutations) place(join(folder, file), content)
  const before = resources(folder)
  let problem: string | undefined
  try {
    const files = mutations.map(({ file }) => file)
    const outcome = await exercise(folder, subject, files, random)
    problem = await leak(before, folder)
    if (problem === undefined) say({ type: 'end', index, outcome })
  } catch (error) {
    problem = inspect(error, { depth: 3 })
  }
  if (problem !== undefined) {
    const kept = `${folder}-case-${index}`
    keepFiles(folder, kept)
    say({ type: 'problem', index, problem, kept })
  }
  for (const { file } of mutations) place(join(folder, file), subject.files[file] as Uint8Array)
}

// Pools of threads and lazily opened files come with the first uses, which are of whole folders.
for (const subject of subjects.slice(-3)) {
  const folder = join(work, subject.name)
  prepare(subject, folder)
  for (const draw of [0.1, 0.9]) {
    const outcome = await exercise(folder, subject, [], () => draw)
    if (outcome !== 'answered') throw new Error(`${subject.name} as it is: ${outcome}`)
  }
}
say({ type: 'ready' })
for (let index = first; index < last; index++) await run(index)
say({ type: 'finished' })
