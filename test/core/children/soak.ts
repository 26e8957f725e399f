// Loads, uses and disposes of models over and over: `soak.ts MICRO TINY` cycles. Prints what the process held after each
// cycle as JSON. Needs --expose-gc.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Device } from '../../../lib/core/index.js'
import { loadModel, type Model, tool } from '../../../lib/index.js'
import { subjects } from '../../fuzz/subjects.js'
import { loadTiny, streamTiny } from './streaming.js'

const [micro = 0, tiny = 0] = process.argv.slice(2).map(Number)
const device = Device.open('cpu')
const work = mkdtempSync(join(tmpdir(), 'nibblet-soak-'))
const whole = folderOf('nvfp4-modelopt')
const other = folderOf('bf16-odd')
const broken = folderOf('fp8-modelopt')
writeFileSync(join(broken, 'model.safetensors'), readFileSync(join(broken, 'model.safetensors')).subarray(0, -9))

function folderOf(name: string): string {
  const folder = mkdtempSync(join(work, name))
  const files = subjects.find((subject) => subject.name === name)?.files ?? {}
  for (const [file, bytes] of Object.entries(files)) writeFileSync(join(folder, file), bytes)
  return folder
}

/** Ends as it must, or the soak ends. */
async function rejects(promise: PromiseLike<unknown>, fits: (error: unknown) => boolean): Promise<void> {
  const error = await promise.then(
    () => new Error('it was fulfilled'),
    (reason: unknown) => reason,
  )
  if (!fits(error)) throw new Error('another outcome than expected', { cause: error })
}
const hasCode = (code: string) => (error: unknown) => (error as { code?: string }).code === code

/** Replies that end, break off, are aborted, fail and are still running when the model goes. */
async function use(model: Model, round: number): Promise<void> {
  const long = { temperature: 1, topP: 1, seed: round, maxTokens: 200 }
  const controller = new AbortController()
  const reason = new Error('never mind')
  // Unless it came to a stop id before.
  const aborted = model.complete('the sun', { ...long, signal: controller.signal }).then(
    () => undefined,
    (error: unknown) => error,
  )
  const whole = model.complete('the sun', { ...long, maxTokens: 5 })
  let parts = 0
  for await (const _ of model.chat('and the sun', long)) if (++parts > round % 3) break
  controller.abort(reason)
  const [outcome] = await Promise.all([aborted, whole])
  if (outcome !== undefined && outcome !== reason) throw new Error('another error than the abort', { cause: outcome })
  await rejects(model.score([1e9]), hasCode('INVALID_OPTION'))
  await rejects(model.chat('a '.repeat(1_900), long), hasCode('CONTEXT_OVERFLOW'))
  await model.score([1, 2, 3])
}

async function microCycle(round: number): Promise<void> {
  const options = { contextLength: 256, maxBatch: 1 + (round % 4), threads: 1 + (round % 2) }
  const load = (folder: string) => loadModel(folder, { ...options, exact: round % 5 === 0 })
  const models = await Promise.all((round % 3 === 0 ? [other, whole] : [round % 3 === 1 ? other : whole]).map(load))
  await Promise.all(models.map((model) => use(model, round)))
  const running = models.map((model) => model.complete('the sun', { maxTokens: 250, temperature: 2, seed: round }))
  const ended = Promise.allSettled(running)
  await Promise.all(models.map((model) => model.dispose()))
  await ended
  await rejects(loadModel(broken, options), hasCode('BAD_FORMAT'))
  const stop = new AbortController()
  const reason = new Error('stopped')
  const onProgress = () => stop.abort(reason)
  await rejects(loadModel(whole, { ...options, signal: stop.signal, onProgress }), (error) => error === reason)
}

async function tinyCycle(round: number): Promise<void> {
  const models = await Promise.all(round % 2 === 0 ? [loadTiny(), loadTiny({ threads: 1 })] : [loadTiny()])
  const beside = await loadModel(whole, { contextLength: 256, maxBatch: 2, threads: 1 })
  const used = use(beside, round)
  const clock = tool({
    name: 'get_time',
    inputSchema: { type: 'object', properties: { city: { type: 'string' } } },
    execute: () => {
      throw new Error('no clock')
    },
  })
  await Promise.all(models.map((model) => model.chat('Tell me the time in Havana.', { tools: [clock], maxTokens: 60 })))
  // Over 4,000 characters: encoded in the worker thread, which takes a second to start from sources.
  if (tiny > 5) await models[0]?.tokenize('The quick brown fox. '.repeat(250))
  const ended = await Promise.all(models.map((model) => streamTiny(model)))
  await used
  await Promise.all([...models, beside].map((model) => model.dispose()))
  for (const end of ended.flat()) await rejects(end, hasCode('DISPOSED'))
}

interface Held {
  rss: number
  heap: number
  external: number
  allocated: number
  files: number
  threads: number
  mappings: number
}
const held: Held[] = []

async function measure(): Promise<void> {
  // Finalizers of native handles run in turns of the event loop.
  for (let turn = 0; turn < 3; turn++) {
    globalThis.gc?.()
    await new Promise((resolve) => setImmediate(resolve))
  }
  const { rss, heapUsed, external } = process.memoryUsage()
  held.push({
    rss,
    heap: heapUsed,
    external,
    allocated: device.memory().allocated,
    files: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
    mappings: readFileSync('/proc/self/maps', 'utf8').split('\n').length,
  })
}

try {
  // Cycles of the bundled model are spread over the others.
  const every = tiny === 0 ? Infinity : Math.max(1, Math.floor(micro / tiny))
  for (let round = 0, done = 0; round < micro; round++) {
    await microCycle(round)
    if (round % every === 0 && done++ < tiny) await tinyCycle(round)
    await measure()
  }
} finally {
  rmSync(work, { recursive: true, force: true })
}
console.log(JSON.stringify(held))
