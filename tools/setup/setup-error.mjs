/** A failure that set-up can explain: its message is one sentence that says what to do, printed without a stack. */
export class SetupError extends Error {}

/** Set-up was told to stop by a signal; `killed` when it could not let the running program end in order. */
export class Interrupted extends Error {
  constructor(killed = false) {
    super('interrupted')
    this.killed = killed
  }
}
