const warned = new Set<string>()

const collected = new FinalizationRegistry<{ noun: string; release: (() => void) | undefined }>(({ noun, release }) => {
  release?.()
  if (warned.has(noun)) return
  warned.add(noun)
  process.emitWarning(`a ${noun} was garbage-collected without dispose(); its memory was held until now`, {
    code: 'NIBBLET_NOT_DISPOSED',
  })
})

/** Warns, once a noun, when `object` is collected before `forget(object)`; `release` must not refer to the object. */
export function watch(object: object, noun: string, release?: () => void): void {
  collected.register(object, { noun, release }, object)
}

export function forget(object: object): void {
  collected.unregister(object)
}
