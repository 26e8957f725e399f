/** What `loadModel()` takes when nothing else is asked for. */
export const loadDefaults = {
  /** At most; less when the model was trained for less. */
  contextLength: 32_768,
  maxBatch: 8,
} as const
