import type { EngineRequest, SamplingParameters } from '../../lib/engine/types.js'

/** Neutral sampling: every option off, temperature 0. */
export const greedy: SamplingParameters = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0,
}

/** A request that changes only what is given: greedy, ten tokens, nothing stops it. */
export function request(
  prompt: ArrayLike<number>,
  options: Partial<Omit<EngineRequest, 'sampling'>> & { sampling?: Partial<SamplingParameters> } = {},
): EngineRequest {
  return {
    maxTokens: 10,
    stopIds: [],
    onToken: () => 'continue',
    ...options,
    prompt: Uint32Array.from(prompt),
    sampling: { ...greedy, ...options.sampling },
  }
}
