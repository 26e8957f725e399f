import { PassThrough, Writable } from 'node:stream'
import type { Io } from '../../lib/cli/output.js'
import { run } from '../../lib/cli/run.js'
import type { CliModel, CliQuantizeOptions, Runtime } from '../../lib/cli/runtime.js'
import { ModelError } from '../../lib/errors.js'
import { chat, complete } from '../../lib/generate/index.js'
import type { LoadOptions } from '../../lib/load-options.js'
import type { WriteSyntheticOptions } from '../../lib/synthetic/write.js'
import { fakeContext } from './fake-context.js'
import { FakeEngine, type Script } from './fake-engine.js'

class Sink extends Writable {
  text = ''
  isTTY: boolean
  /** Fails each write as a pipe without a reader does. */
  broken = false

  constructor(isTTY: boolean) {
    super()
    this.isTTY = isTTY
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error) => void): void {
    if (!this.broken) this.text += chunk.toString()
    done(this.broken ? Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }) : undefined)
  }
}

export interface Session {
  argv: string[]
  scripts?: Script[]
  /** Text on stdin; `null` keeps it open. Default: empty. */
  stdin?: string | null
  /** Whether stdin, stdout and stderr are terminals. */
  terminal?: boolean
  env?: Record<string, string>
  runtime?: Partial<Runtime>
  model?: Partial<CliModel>
}

/** Starts a command line in this process, on a scripted model. */
export function startCli({ argv, scripts = [], stdin = '', terminal = false, env = {}, runtime, model }: Session) {
  const engine = new FakeEngine(...scripts)
  const { context } = fakeContext(engine)
  const input = Object.assign(new PassThrough(), { isTTY: terminal })
  if (stdin !== null) input.end(stdin)
  const stdout = new Sink(terminal)
  const stderr = new Sink(terminal)
  const listeners = new Set<() => void>()
  const io: Io = {
    stdin: input,
    stdout,
    stderr,
    env,
    onInterrupt: (listener) => {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
  }
  const calls = {
    loads: [] as [name: string, options: LoadOptions][],
    quantized: [] as [folder: string, out: string, options: CliQuantizeOptions][],
    synthesized: [] as [preset: string, out: string, options: WriteSyntheticOptions][],
    disposed: 0,
  }
  const fakeModel: CliModel = {
    info: { name: 'fake' },
    chat: (messages, options) => chat(context, messages, options),
    complete: (prompt, options) => complete(context, prompt, options),
    score: async (ids, { last = ids.length } = {}) => ({
      argmax: Int32Array.from(ids, (id) => id + 1),
      logits: Array.from({ length: last }, (_, i) => Float32Array.of(0.1, -i, 1 / 3)),
    }),
    dispose: async () => {
      calls.disposed++
    },
    ...model,
  }
  const notFound = (name: string) => new ModelError('MODEL_NOT_FOUND', `There is no model '${name}'.`)
  const fake: Runtime = {
    version: '1.2.3',
    loadModel: async (name, options) => {
      calls.loads.push([name, options])
      options.onProgress?.({ stage: 'read', loaded: 1e6, total: 2e6 })
      if (name !== 'tiny') throw notFound(name)
      return fakeModel
    },
    resolveModel: async (name) => `/models/${name}`,
    openCheckpoint: async (folder) => {
      throw notFound(folder)
    },
    memoryNeeded: async () => ({ weights: 1, cache: 2, total: 3 }),
    quantize: async (folder, out, options) => {
      calls.quantized.push([folder, out, options])
      options.onProgress({ loaded: 1e6, total: 1e6 })
    },
    bench: async (name) => {
      throw notFound(name)
    },
    synthesize: async (preset, out, options) => {
      calls.synthesized.push([preset, out, options])
      options.onProgress?.({ loaded: 1e6, total: 1e6 })
    },
    locateBinding: async () => ({ binding: { version: '1.2.3' }, path: '/x/nibblet.node', source: 'build' }),
    ...runtime,
  }
  const exit = run(argv, io, fake)
  return { exit, engine, stdin: input, stdout, stderr, calls, listeners, interrupt: () => [...listeners].at(-1)?.() }
}

/** Runs a command line to its end. */
export async function cli(session: Session) {
  const started = startCli(session)
  const code = await started.exit
  return { ...started, code, out: started.stdout.text, err: started.stderr.text }
}
