import type { EngineRequest } from '../engine/types.js'
import { RequestError } from '../errors.js'
import { tags } from '../text/markup.js'
import type { AssistantMessage, Message, ToolCall, ToolSpec } from '../text/messages.js'
import { StreamParser } from '../text/stream-parser.js'
import { ChatStream, type StreamController } from './chat-stream.js'
import { invalidOption } from './check.js'
import { checkMessages } from './check-messages.js'
import {
  type ChatOptions,
  type GenerateOptions,
  type ResolvedChatOptions,
  type ResolvedGenerateOptions,
  resolveChatOptions,
  resolveGenerateOptions,
} from './options.js'
import type { FinishReason, Reply } from './reply.js'
import { type ChatContext, type Round, runRound } from './round.js'
import { executeCalls } from './tool-calls.js'
import { Totals } from './totals.js'

export type { ChatContext } from './round.js'

/**
 * Answers a conversation: renders it with the checkpoint's template, generates, and parses reasoning and tool calls.
 * Tools with `execute` are run and their results given back, for at most `maxToolRounds` rounds; a turn that calls any
 * tool without `execute`, or one that was not offered, ends with `tool-calls` and none of its calls executed.
 *
 * Rejects with `INVALID_OPTION`, `BAD_SCHEMA`, `CONTEXT_OVERFLOW` or `DISPOSED`, with the engine's error, or on abort
 * with `signal.reason`.
 */
export function chat(context: ChatContext, input: string | readonly Message[], options: ChatOptions = {}): ChatStream {
  return new ChatStream(async (controller) => {
    const release = context.guard()
    try {
      const messages = checkMessages(input)
      const resolved = resolveChatOptions(options, context)
      controller.follow(resolved.signal)
      return await runChat(context, controller, messages, resolved)
    } finally {
      release()
    }
  })
}

/**
 * Continues raw text: no template, no token added, special tokens recognised where the text spells them. The whole
 * output is answer text, tags such as `</think>` included.
 *
 * Rejects with `INVALID_OPTION` (also for a text of no tokens), `CONTEXT_OVERFLOW` or `DISPOSED`, with the engine's
 * error, or on abort with `signal.reason`.
 */
export function complete(context: ChatContext, prompt: string, options: GenerateOptions = {}): ChatStream {
  return new ChatStream(async (controller) => {
    const release = context.guard()
    try {
      if (typeof prompt !== 'string') throw invalidOption('prompt', 'a string', prompt)
      const resolved = resolveGenerateOptions(options, context)
      controller.follow(resolved.signal)
      return await runComplete(context, controller, prompt, resolved)
    } finally {
      release()
    }
  })
}

async function runComplete(
  context: ChatContext,
  controller: StreamController,
  text: string,
  options: ResolvedGenerateOptions,
): Promise<Reply> {
  const prompt = await unlessCancelled(controller, () => context.tokenizer.encode(text, { special: true }))
  if (prompt === undefined) return makeReply(undefined, 'cancelled', [], new Totals(), options)
  if (prompt.length === 0) throw invalidOption('prompt', 'a text of at least one token', text)
  const round = await runRound(context, controller, {
    prompt,
    options,
    parser: undefined,
    opensThinking: false,
    thinking: undefined,
  })
  const totals = new Totals()
  totals.add(round)
  return makeReply(round, round.reason, [], totals, options)
}

async function runChat(
  context: ChatContext,
  controller: StreamController,
  messages: readonly Message[],
  options: ResolvedChatOptions,
): Promise<Reply> {
  const { template, tokenizer } = context
  const tools = [...options.tools.values()].map(
    ({ name, description, parameters }): ToolSpec => ({
      name,
      ...(description === undefined ? {} : { description }),
      parameters,
    }),
  )
  const forced = await unlessCancelled(controller, () => forcedEnd(context, options))
  const totals = new Totals()
  const added: Message[] = []
  let previous: Round | undefined
  for (let round = 0; ; round++) {
    const conversation = [...messages, ...added]
    const rendered = template.render(conversation, { tools, thinking: options.thinking })
    const prompt = await unlessCancelled(controller, () => tokenizer.encodePrompt(rendered))
    if (prompt === undefined) return makeReply(previous, 'cancelled', added, totals, options)
    const opensThinking = rendered.opensThinking
    const current = await runRound(context, controller, {
      prompt,
      options,
      parser: new StreamParser({ thinking: opensThinking, tools, tokenizer, previousCalls: countCalls(conversation) }),
      opensThinking,
      thinking: opensThinking ? forced : undefined,
    })
    totals.add(current)
    previous = current
    const { toolCalls } = current.collected
    if (current.reason !== 'stop') return makeReply(current, current.reason, added, totals, options)
    if (toolCalls.length === 0) return makeReply(current, 'stop', added, totals, options)
    if (round >= options.maxToolRounds || !toolCalls.every((call) => options.tools.get(call.name)?.execute)) {
      return makeReply(current, 'tool-calls', added, totals, options)
    }
    const results = await unlessCancelled(controller, () =>
      executeCalls(toolCalls, options.tools, controller, context.disposal),
    )
    if (results === undefined) return makeReply(current, 'cancelled', added, totals, options)
    added.push(assistantMessage(current), ...results)
  }
}

function countCalls(messages: readonly Message[]): number {
  return messages.reduce(
    (sum, message) => sum + (message.role === 'assistant' ? (message.toolCalls?.length ?? 0) : 0),
    0,
  )
}

/** Awaits a step in front of the engine: `undefined` when the consumer cancelled, a rejection when it aborted. */
async function unlessCancelled<T>(controller: StreamController, step: () => Promise<T>): Promise<T | undefined> {
  try {
    controller.signal.throwIfAborted()
    const value = await step()
    controller.signal.throwIfAborted()
    return value
  } catch (error) {
    if (controller.cancelled && error === controller.signal.reason) return undefined
    throw error
  }
}

/**
 * How a thinking budget ends the reasoning: a line break and `</think>`, which is how the templates of the family write
 * the end of a think block; the model itself continues after it. A `<tool_call>` also ends the reasoning.
 */
async function forcedEnd(
  { tokenizer }: ChatContext,
  { thinking, thinkingBudget }: ResolvedChatOptions,
): Promise<EngineRequest['thinking']> {
  if (!thinking || thinkingBudget === undefined) return undefined
  const close = tokenizer.idOf(tags.thinkClose)
  if (close === undefined) {
    throw new RequestError(
      'INVALID_OPTION',
      'A thinking budget needs a `</think>` token, which the vocabulary of this checkpoint lacks. Leave `thinking.maxTokens` out.',
      { details: { option: 'thinking' } },
    )
  }
  const call = tokenizer.idOf(tags.toolCallOpen)
  const lineBreak = await tokenizer.encode('\n', { special: false })
  return {
    opened: true,
    budget: thinkingBudget,
    endIds: call === undefined ? [close] : [close, call],
    forcedIds: [...lineBreak, close],
  }
}

function assistantMessage(round: Round | undefined): AssistantMessage {
  const { text = '', reasoning = '', toolCalls = [] as ToolCall[] } = round?.collected ?? {}
  return {
    role: 'assistant',
    content: text,
    ...(reasoning === '' ? {} : { reasoning }),
    ...(toolCalls.length === 0 ? {} : { toolCalls: [...toolCalls] }),
  }
}

function makeReply(
  round: Round | undefined,
  finishReason: FinishReason,
  added: readonly Message[],
  totals: Totals,
  options: ResolvedGenerateOptions,
): Reply {
  const { text = '', reasoning = '', toolCalls = [], ids = [], logprobs = [] } = round?.collected ?? {}
  const message = assistantMessage(round)
  return {
    text,
    reasoning,
    toolCalls: [...toolCalls],
    message,
    messages: [...added, message],
    finishReason,
    usage: totals.usage,
    timings: totals.timings,
    ...(options.logprobs === undefined ? {} : { logprobs: [...logprobs] }),
    ids: Uint32Array.from(ids),
  }
}
