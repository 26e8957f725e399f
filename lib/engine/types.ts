/** Sampling of one reply, fully resolved: every field has its value, "off" is the neutral one. */
export interface SamplingParameters {
  /** 0 is greedy. */
  temperature: number
  /** 0 is off. */
  topK: number
  /** 1 is off. */
  topP: number
  /** 0 is off. */
  minP: number
  /** 1 is off; over prompt and output tokens. */
  repetitionPenalty: number
  /** 0 is off; over output tokens. */
  presencePenalty: number
  /** 0 is off; over output tokens. */
  frequencyPenalty: number
  /** Any integer from 0 to 2^53 - 1. The same seed, prompt and options give the same tokens. */
  seed: number
}

/** Greedy, every option off: what a request changes is spread over it. */
export const greedySampling: SamplingParameters = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0,
}

/** One sampled token, in order. */
export interface TokenEvent {
  id: number
  /** The token is one of the request's stop ids. No token follows. */
  stop: boolean
  /** The token was forced by the thinking budget. */
  forced: boolean
  /** Natural logarithm of the token's probability before penalties and sampling; present when asked for. */
  logprob?: number
  /** The most likely tokens, best first; present when asked for. */
  top?: { id: number; logprob: number }[]
}

export interface EngineRequest {
  /** At least one token. */
  prompt: Uint32Array
  sampling: SamplingParameters
  /** At least 1. The engine never samples more; prompt + maxTokens fits the context (the caller checked). */
  maxTokens: number
  stopIds: readonly number[]
  /** `undefined`: none; otherwise the number of alternatives, 0 to 20. */
  logprobs?: number | undefined
  thinking?:
    | {
        /** The prompt ends inside a think block. */
        opened: boolean
        /** Tokens that may be thought; -1 is no limit. */
        budget: number
        /** Ids that end the thinking. */
        endIds: readonly number[]
        /** Ids forced when the budget is used up; the last one ends the thinking. */
        forcedIds: readonly number[]
      }
    | undefined
  signal?: AbortSignal | undefined
  /** Called once a token, in order, never re-entrantly. Returning 'stop' ends the reply after this token. */
  onToken(event: TokenEvent): 'continue' | 'stop'
  /** Called after each chunk of the prompt. */
  onPrefill?: ((done: number, total: number) => void) | undefined
}

export interface EngineOutcome {
  /** stop: a stop id or `onToken` ended it; length: maxTokens reached. Aborts reject with `signal.reason` instead. */
  reason: 'stop' | 'length'
  timings: { queueMs: number; prefillMs: number; decodeMs: number }
}

/** What generation needs of the engine: the one loop that every request of a model shares. */
export interface Engine {
  /** Runs a request to its end. Rejects with `signal.reason` on abort and with a NibbletError on failure. */
  run(request: EngineRequest): Promise<EngineOutcome>
}
