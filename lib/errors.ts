const marker = Symbol.for('nibblet.error')

/** Every error code that nibblet can throw, by the class that carries it. */
export type DeviceErrorCode =
  | 'NO_DEVICE'
  | 'DRIVER_TOO_OLD'
  | 'UNSUPPORTED_ARCH'
  | 'OUT_OF_MEMORY'
  | 'OP_FAILED'
  | 'STREAM_FAILED'
export type ModelErrorCode =
  | 'MODEL_NOT_FOUND'
  | 'BAD_FORMAT'
  | 'UNSUPPORTED_MODEL'
  | 'CHECKSUM_MISMATCH'
  | 'OUTPUT_EXISTS'
export type RequestErrorCode = 'INVALID_OPTION' | 'CONTEXT_OVERFLOW' | 'BAD_SCHEMA' | 'QUEUE_FULL'
export type StateErrorCode = 'DISPOSED' | 'STREAM_CONSUMED' | 'SNAPSHOT_MISMATCH'
export type BindingErrorCode = 'NO_BINARY' | 'ABI_MISMATCH'
export type Code = DeviceErrorCode | ModelErrorCode | RequestErrorCode | StateErrorCode | BindingErrorCode

export interface NibbletErrorOptions {
  cause?: unknown
  /** What the code documents beside the message, for example `{ tokens, limit }` for `CONTEXT_OVERFLOW`. */
  details?: Readonly<Record<string, unknown>>
}

/**
 * Base of every error that nibblet throws. Recognise it with `NibbletError.is(e)`, which also works across duplicate
 * copies of the package, and tell cases apart by `code`. Aborts are not wrapped: they reject with `signal.reason`.
 *
 * @example
 * try { await loadModel('./missing') } catch (e) { if (NibbletError.is(e) && e.code === 'MODEL_NOT_FOUND') … }
 */
export class NibbletError extends Error {
  readonly code: Code
  readonly details: Readonly<Record<string, unknown>>

  constructor(code: Code, message: string, options: NibbletErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.details = options.details ?? {}
    Object.defineProperty(this, marker, { value: true })
  }

  override get name(): string {
    return this.constructor.name
  }

  static is(error: unknown): error is NibbletError {
    return typeof error === 'object' && error !== null && marker in error
  }
}

/** A device cannot be used, ran out of memory, or failed while computing. */
export class DeviceError extends NibbletError {
  declare readonly code: DeviceErrorCode
}

/** A model's files are missing, malformed, or of a kind that nibblet does not run. */
export class ModelError extends NibbletError {
  declare readonly code: ModelErrorCode
}

/** A call was given an option or input that it cannot take. */
export class RequestError extends NibbletError {
  declare readonly code: RequestErrorCode
}

/** An object was used in a state that does not allow it. */
export class StateError extends NibbletError {
  declare readonly code: StateErrorCode
}

/** The native addon could not be loaded. */
export class BindingError extends NibbletError {
  declare readonly code: BindingErrorCode
}
