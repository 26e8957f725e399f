import type { AssistantMessage, Message, ToolCall } from '../text/messages.js'

/** Why a reply ended. `length`: maxTokens or the end of the context. `cancelled`: the consumer stopped listening. */
export type FinishReason = 'stop' | 'length' | 'tool-calls' | 'cancelled'

/** Tokens, summed over all rounds of a chat with tools. */
export interface Usage {
  inputTokens: number
  /** Input tokens that came from a cache instead of being computed. */
  cachedInputTokens: number
  /** Every token of the model, with reasoning, the tags around it, tokens forced by a thinking budget and stop tokens. */
  outputTokens: number
  /** The part of the output tokens that was reasoning, its closing tag included. */
  reasoningTokens: number
}

/** Milliseconds, summed over all rounds of a chat with tools; the tools' own time is not in them. */
export interface Timings {
  /** From the call to the first work on it. Not known, and 0, when the chat was cancelled. */
  queueMs: number
  /** Reading the input, up to the first output token. */
  prefillMs: number
  /** From the first output token to the last. */
  decodeMs: number
  /** Output tokens after the first, divided by `decodeMs`; 0 when there are none. */
  tokensPerSecond: number
}

/** One output token with its log probability, natural logarithm, before penalties and sampling. */
export interface TokenLogprob {
  id: number
  /** The token's text; a token that is a piece of a character shows as U+FFFD. */
  token: string
  logprob: number
  /** The most likely tokens, best first. */
  top: { id: number; token: string; logprob: number }[]
}

/** One part of a streamed reply. */
export type ChatPart =
  | { type: 'reasoning'; text: string }
  | { type: 'text'; text: string }
  | { type: 'tool-call'; id: string; name: string; input: Record<string, unknown> }
  /** A tool was executed; `output` is the text that the model reads. */
  | { type: 'tool-result'; id: string; name: string; output: string; isError: boolean }
  | { type: 'finish'; finishReason: FinishReason; usage: Usage; timings: Timings }

/** A whole reply. In a chat with tool rounds, everything but `messages`, `usage` and `timings` is the last round's. */
export interface Reply {
  /** The answer, without reasoning and tool calls. */
  text: string
  reasoning: string
  /** Calls that nothing executed; not empty exactly when `finishReason` is `tool-calls`, or the reply was cut after one. */
  toolCalls: ToolCall[]
  /** The answer as a message that can be pushed into the conversation, with its reasoning and tool calls. */
  message: AssistantMessage
  /** Every message that the chat added: the assistant's, and the tools' results between them. The last is `message`. */
  messages: Message[]
  finishReason: FinishReason
  usage: Usage
  timings: Timings
  /** Present when `logprobs` was asked for; one entry for each of `ids`. */
  logprobs?: TokenLogprob[]
  /** The output tokens, a stop token included. */
  ids: Uint32Array
}
