import type { GenerationDefaults } from '../checkpoint/generation-config.js'
import type { Engine, EngineRequest } from '../engine/types.js'
import { ModelError, RequestError } from '../errors.js'
import type { ChatTemplate } from '../text/chat-template.js'
import type { StreamParser } from '../text/stream-parser.js'
import type { Tokenizer } from '../text/tokenizer.js'
import type { StreamController } from './chat-stream.js'
import { Collector } from './collector.js'
import type { ResolvedGenerateOptions } from './options.js'

/** What a loaded model gives to generation. */
export interface ChatContext {
  readonly engine: Engine
  readonly tokenizer: Tokenizer
  readonly template: ChatTemplate
  /** Most tokens that prompt and reply may have together. */
  readonly contextLength: number
  readonly vocabularySize: number
  /** The checkpoint's stop ids and sampling defaults. */
  readonly generation: GenerationDefaults
  /** Throws `DISPOSED` when the model is; otherwise keeps it alive until the returned function is called. */
  guard(): () => void
  /** Aborts with `DISPOSED` when the model is disposed of: for whatever the engine does not end by itself. */
  readonly disposal: AbortSignal
}

/** One run of the engine: a prompt and how to read what comes of it. */
export interface RoundRequest {
  prompt: Uint32Array
  options: ResolvedGenerateOptions
  parser: StreamParser | undefined
  opensThinking: boolean
  thinking: EngineRequest['thinking']
}

/** What one run gave, also when it was cancelled in the middle. */
export interface Round {
  collected: Collector
  inputTokens: number
  reason: 'stop' | 'length' | 'cancelled'
  timings: { queueMs: number; prefillMs: number; decodeMs: number }
}

function checkContext(tokens: number, limit: number): void {
  if (tokens < limit) return
  throw new RequestError(
    'CONTEXT_OVERFLOW',
    `The prompt has ${tokens} tokens, but the context holds ${limit} and the reply needs at least one of them. ` +
      'Shorten the conversation, or load the model with a larger `contextLength`.',
    { details: { tokens, limit } },
  )
}

/** A tokenizer may know more tokens than the model has; one that is out of the model's reach must not reach a step. */
function checkIds({ prompt, thinking }: RoundRequest, vocabularySize: number): void {
  const lists = [prompt, thinking?.endIds ?? [], thinking?.forcedIds ?? []]
  for (const ids of lists) {
    for (const id of ids) {
      if (id < vocabularySize) continue
      throw new ModelError(
        'BAD_FORMAT',
        `The tokenizer gave the token id ${id}, but the model has ${vocabularySize}. Use the tokenizer.json that belongs ` +
          'to the checkpoint.',
        { details: { id, vocabularySize } },
      )
    }
  }
}

/**
 * Runs the engine on one prompt, emits the parts, and resolves with what came. A cancel by the consumer resolves with
 * the part so far; an abort rejects with `signal.reason`, a prompt that leaves no room with `CONTEXT_OVERFLOW`.
 */
export async function runRound(
  context: ChatContext,
  controller: StreamController,
  request: RoundRequest,
): Promise<Round> {
  const { prompt, options } = request
  checkContext(prompt.length, context.contextLength)
  checkIds(request, context.vocabularySize)
  const room = context.contextLength - prompt.length
  const collected = new Collector({
    tokenizer: context.tokenizer,
    parser: request.parser,
    opensThinking: request.opensThinking,
    stop: options.stop,
    logprobs: options.logprobs !== undefined,
    emit: controller.emit,
  })
  const calledAt = performance.now()
  let failure: { error: unknown } | undefined
  try {
    const outcome = await context.engine.run({
      prompt,
      sampling: options.sampling,
      maxTokens: Math.min(options.maxTokens ?? room, room),
      stopIds: options.stopIds,
      logprobs: options.logprobs,
      thinking: request.thinking,
      signal: controller.signal,
      // A throw here must not reach the loop that other requests share.
      onToken: (event) => {
        try {
          return collected.push(event)
        } catch (error) {
          failure = { error }
          return 'stop'
        }
      },
    })
    if (failure !== undefined) throw failure.error
    collected.finish()
    return { collected, inputTokens: prompt.length, reason: outcome.reason, timings: outcome.timings }
  } catch (error) {
    if (!controller.cancelled || error !== controller.signal.reason) throw error
    collected.finish()
    const { firstTokenAt = performance.now(), lastTokenAt = firstTokenAt } = collected
    const timings = { queueMs: 0, prefillMs: firstTokenAt - calledAt, decodeMs: lastTokenAt - firstTokenAt }
    return { collected, inputTokens: prompt.length, reason: 'cancelled', timings }
  }
}
