import { expect } from 'vitest'
import { type Code, NibbletError } from '../../lib/errors.js'

/** Runs something that must fail with a NibbletError of this code whose message holds every one of the texts. */
export async function expectError(run: () => unknown, code: Code, ...texts: readonly string[]): Promise<NibbletError> {
  let error: unknown
  try {
    await run()
  } catch (thrown) {
    error = thrown
  }
  if (!NibbletError.is(error))
    throw new Error(`expected a NibbletError ${code}, got ${String(error)}`, { cause: error })
  expect(error.code, error.message).toBe(code)
  for (const text of texts) expect(error.message).toContain(text)
  return error
}
