import type { GenerationDefaults } from './checkpoint/checkpoint.js'
import type { Compact } from './checkpoint/weight-loader.js'
import type { Device } from './core/device.js'
import { forget, watch } from './core/disposal.js'
import { BatchEngine } from './engine/engine.js'
import type { ModelRunner } from './engine/model-runner.js'
import { type Scores, score } from './engine/score.js'
import { ModelError, RequestError, StateError } from './errors.js'
import {
  type ChatContext,
  type ChatOptions,
  type ChatStream,
  chat,
  complete,
  type GenerateOptions,
} from './generate/index.js'
import type { ChatTemplate } from './text/chat-template.js'
import type { Message } from './text/messages.js'
import type { Tokenizer } from './text/tokenizer.js'

export interface ModelInfo {
  readonly name: string
  readonly folder: string
  readonly layers: number
  readonly parameters: number
  /** As the checkpoint names it, for example 'NVFP4'; 'none' for BF16. */
  readonly quantization: string
  readonly contextLength: number
  readonly vocabularySize: number
  readonly device: string
  readonly threads: number
  readonly kvCache: 'fp8' | 'bf16' | 'f32'
  readonly exact: boolean
}

/** Bytes. */
export interface MemoryUsage {
  /** `weights`, `cache` (attention pages, Mamba and sampling state), `workspace` (temporaries), `free` to allocate. */
  device: { weights: number; cache: number; workspace: number; free: number }
  /** The process as Node sees it. */
  host: { rss: number; heapUsed: number }
}

/** What a loaded model is made of. */
export interface ModelParts {
  info: ModelInfo
  device: Device
  runner: ModelRunner
  /** Owners of the weights. */
  weights: { bytes: number; compact: Compact; dispose(): void }
  /** Undefined when the folder has no tokenizer. */
  text: { tokenizer: Tokenizer; template: ChatTemplate } | undefined
  generation: GenerationDefaults
}

/**
 * A loaded model. Calls may overlap: they share one batch.
 *
 * @example
 * const model = await loadModel('tiny')
 * try {
 *   console.log((await model.chat('What is 291 + 647?')).text)
 * } finally {
 *   await model.dispose()
 * }
 */
export class Model {
  readonly info: ModelInfo
  readonly #parts: ModelParts
  readonly #engine: BatchEngine
  #guards = 0
  #idle: (() => void) | undefined
  #disposing: Promise<void> | undefined
  readonly #disposal = new AbortController()
  #scoring: Promise<unknown> = Promise.resolve()

  /** @internal Use `loadModel`. */
  constructor(parts: ModelParts) {
    this.info = parts.info
    this.#parts = parts
    this.#engine = new BatchEngine(parts.runner, parts.runner.allocator)
    watch(this, 'Model')
  }

  /**
   * Answers a conversation. The result is awaitable (the whole reply) and async iterable (its parts as they come).
   *
   * @example
   * for await (const part of model.chat('Why is the sky blue?')) {
   *   if (part.type === 'text') process.stdout.write(part.text)
   * }
   */
  chat(input: string | readonly Message[], options: ChatOptions = {}): ChatStream {
    return chat(this.#context(), input, options)
  }

  /** Continues raw text: no template; special tokens in it are recognised, none is added. */
  complete(prompt: string, options: GenerateOptions = {}): ChatStream {
    return complete(this.#context(), prompt, options)
  }

  /**
   * Logits of a token sequence, for comparing implementations: the most likely next token at every position, and the raw
   * logits of the last `last` positions (default: all). No token is added.
   *
   * @throws RequestError INVALID_OPTION for ids outside the vocabulary, CONTEXT_OVERFLOW when there are too many
   */
  async score(ids: ArrayLike<number>, options: { last?: number; signal?: AbortSignal } = {}): Promise<Scores> {
    const release = this.#guard()
    try {
      const tokens = this.#checkIds(ids)
      const { last = tokens.length, signal } = options
      if (!Number.isInteger(last) || last < 0) {
        throw new RequestError('INVALID_OPTION', `expected a whole number for \`last\`, got ${last}`, {
          details: { option: 'last' },
        })
      }
      const { runner } = this.#parts
      const previous = this.#scoring
      const run = previous.then(() => score(runner, tokens, { last, signal }))
      this.#scoring = run.catch(() => {})
      return await run
    } catch (error) {
      // The stream was closed under it.
      if (this.#disposing && error !== options.signal?.reason) throw disposedError()
      throw error
    } finally {
      release()
    }
  }

  /** Token ids of a text. With `special`, added tokens that the text spells are recognised. */
  async tokenize(text: string, options: { special?: boolean } = {}): Promise<Uint32Array> {
    const release = this.#guard()
    try {
      return await this.#text().tokenizer.encode(text, { special: options.special ?? false })
    } finally {
      release()
    }
  }

  /** The text of token ids, control tokens included. */
  detokenize(ids: ArrayLike<number>): string {
    return this.#text().tokenizer.decode(this.#checkIds(ids, true))
  }

  memory(): MemoryUsage {
    const { device, runner, weights } = this.#parts
    const { rss, heapUsed } = process.memoryUsage()
    return {
      device: { weights: weights.bytes, ...runner.memory, free: device.memory().available },
      host: { rss, heapUsed },
    }
  }

  /**
   * Ends what runs (it rejects with DISPOSED) and frees all memory. Resolves when that is done; a tool that is being
   * executed has its signal aborted and is not waited for. Idempotent.
   */
  dispose(): Promise<void> {
    this.#disposing ??= this.#release()
    return this.#disposing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }

  async #release(): Promise<void> {
    forget(this)
    this.#engine.dispose()
    this.#disposal.abort(disposedError())
    this.#parts.runner.close()
    await new Promise<void>((resolve) => {
      if (this.#guards === 0) resolve()
      else this.#idle = resolve
    })
    this.#parts.runner.dispose()
    this.#parts.weights.dispose()
    await this.#parts.text?.tokenizer.dispose()
  }

  #guard(): () => void {
    if (this.#disposing) throw disposedError()
    this.#guards += 1
    let released = false
    return () => {
      if (released) return
      released = true
      this.#guards -= 1
      if (this.#guards === 0) this.#idle?.()
    }
  }

  #context(): ChatContext {
    const text = () => this.#text()
    const { contextLength, vocabularySize } = this.info
    return {
      engine: this.#engine,
      get tokenizer() {
        return text().tokenizer
      },
      get template() {
        return text().template
      },
      contextLength,
      vocabularySize,
      generation: this.#parts.generation,
      guard: () => this.#guard(),
      disposal: this.#disposal.signal,
    }
  }

  #text() {
    if (this.#parts.text) return this.#parts.text
    throw new ModelError(
      'MODEL_NOT_FOUND',
      `${this.info.folder} has no tokenizer.json: it can score token ids, not text. Add the checkpoint's tokenizer files.`,
    )
  }

  #checkIds(ids: ArrayLike<number>, allowEmpty = false): Uint32Array {
    const { vocabularySize, contextLength } = this.info
    for (let index = 0; index < ids.length; index++) {
      const id = ids[index]
      if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= vocabularySize) {
        throw new RequestError(
          'INVALID_OPTION',
          `expected token ids from 0 to ${vocabularySize - 1}, got ${id} at index ${index}`,
          { details: { option: 'ids' } },
        )
      }
    }
    if (ids.length === 0 && !allowEmpty) {
      throw new RequestError('INVALID_OPTION', 'expected at least one token id', { details: { option: 'ids' } })
    }
    if (ids.length > contextLength && !allowEmpty) {
      throw new RequestError(
        'CONTEXT_OVERFLOW',
        `${ids.length} tokens do not fit the context of ${contextLength}: pass fewer, or load with a larger contextLength`,
        { details: { tokens: ids.length, limit: contextLength } },
      )
    }
    return Uint32Array.from(ids)
  }
}

function disposedError(): StateError {
  return new StateError('DISPOSED', 'the model was disposed of; load it again')
}
