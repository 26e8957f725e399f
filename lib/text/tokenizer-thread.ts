import { Worker } from 'node:worker_threads'
import { DeviceError, ModelError, type ModelErrorCode, RequestError, type RequestErrorCode } from '../errors.js'
import type { VocabularyTables } from './vocabulary.js'

/** What the worker is started with; `bytes` is tokenizer.json, shared, so that starting one copies nothing. */
export interface WorkerInput {
  readonly bytes: SharedArrayBuffer
  readonly path: string
  /** Whether to answer with the vocabulary's tables. */
  readonly tables: boolean
}

/** A text to encode; `id` comes back with the reply. */
export interface WorkerRequest {
  readonly id: number
  readonly text: string
  readonly special: boolean
  readonly literals: Uint32Array
}

/** Reply 0 says that the worker is ready, or why it is not. */
export interface WorkerReply {
  readonly id: number
  readonly tables?: VocabularyTables
  readonly ids?: Uint32Array
  readonly error?: { class: string; code: string; message: string; details: Record<string, unknown> }
}

interface Waiting {
  resolve(reply: WorkerReply): void
  reject(error: unknown): void
}

/**
 * A worker thread that encodes text. It keeps the process alive only while someone waits for it. When it dies (say for want
 * of memory) whoever waits gets a `DeviceError`, and the next request finds `failed` set.
 */
export class TokenizerThread {
  readonly #worker: Worker
  readonly #waiting = new Map<number, Waiting>()
  readonly #ready: Promise<WorkerReply>
  #lastId = 0
  #failure: { reason: unknown } | undefined

  constructor(input: WorkerInput) {
    this.#worker = startWorker(input)
    this.#ready = this.#wait(0)
    // Whoever asks for the tables or encodes sees the rejection; until then it must not count as unhandled.
    this.#ready.catch(() => {})
    this.#worker.on('message', (reply: WorkerReply) => this.#settle(reply))
    this.#worker.on('error', (cause) => this.#fail(stopped(cause)))
    this.#worker.on('exit', () => this.#fail(stopped()))
  }

  /** Whether the worker has ended: it answers nothing more. */
  get failed(): boolean {
    return this.#failure !== undefined
  }

  /** The vocabulary's tables, of a thread that was started with `tables: true`. */
  async tables(): Promise<VocabularyTables> {
    return (await this.#ready).tables as VocabularyTables
  }

  async encode(text: string, special: boolean, literals: Uint32Array): Promise<Uint32Array> {
    await this.#ready
    if (this.#failure !== undefined) throw this.#failure.reason
    const id = ++this.#lastId
    const answer = this.#wait(id)
    this.#worker.postMessage({ id, text, special, literals } satisfies WorkerRequest)
    return (await answer).ids as Uint32Array
  }

  /** Ends the worker; whoever waits is rejected with `reason`. */
  async stop(reason: unknown): Promise<void> {
    this.#fail(reason)
    await this.#worker.terminate()
  }

  #wait(id: number): Promise<WorkerReply> {
    this.#worker.ref()
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }))
  }

  #settle(reply: WorkerReply): void {
    const waiting = this.#waiting.get(reply.id)
    this.#waiting.delete(reply.id)
    if (this.#waiting.size === 0) this.#worker.unref()
    if (reply.error === undefined) {
      waiting?.resolve(reply)
    } else {
      const reason = revive(reply.error)
      waiting?.reject(reason)
      if (reply.id === 0) this.#failure = { reason }
    }
  }

  #fail(reason: unknown): void {
    this.#failure ??= { reason }
    for (const { reject } of this.#waiting.values()) reject(reason)
    this.#waiting.clear()
    this.#worker.unref()
  }
}

// From TypeScript source (tests, tsx) the worker's entry is TypeScript too, and a worker does not inherit the loader.
function startWorker(workerData: WorkerInput): Worker {
  if (!import.meta.url.endsWith('.ts')) {
    return new Worker(new URL('./tokenizer-worker.js', import.meta.url), { workerData, execArgv: [] })
  }
  const loader = JSON.stringify(import.meta.resolve('tsx/esm/api'))
  const entry = JSON.stringify(new URL('./tokenizer-worker.ts', import.meta.url).href)
  const source = `import(${loader}).then(({ register }) => { register(); return import(${entry}) })`
  return new Worker(source, { eval: true, workerData, execArgv: [] })
}

function stopped(cause?: unknown): DeviceError {
  const reason = cause instanceof Error ? ` (${cause.message})` : ''
  return new DeviceError(
    'OP_FAILED',
    `The tokenizer's worker thread stopped${reason}. Try again; if it persists, report it.`,
    {
      details: { op: 'tokenize' },
      ...(cause === undefined ? {} : { cause }),
    },
  )
}

function revive(error: NonNullable<WorkerReply['error']>): Error {
  const { message, details } = error
  if (error.class === 'ModelError') return new ModelError(error.code as ModelErrorCode, message, { details })
  if (error.class === 'RequestError') return new RequestError(error.code as RequestErrorCode, message, { details })
  return stopped(new Error(message))
}
