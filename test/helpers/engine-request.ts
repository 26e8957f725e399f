import { type EngineRequest, greedySampling, type SamplingParameters } from '../../lib/engine/types.js'

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
    sampling: { ...greedySampling, ...options.sampling },
  }
}
