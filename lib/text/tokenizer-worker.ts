import { parentPort, workerData } from 'node:worker_threads'
import { NibbletError } from '../errors.js'
import { SubwordEncoder } from './subword-encoder.js'
import { readTokenizerFile } from './tokenizer-file.js'
import type { WorkerInput, WorkerReply, WorkerRequest } from './tokenizer-thread.js'
import { vocabularyTables } from './vocabulary.js'

// The worker's side of TokenizerThread: builds its own encoder from the shared bytes of the file, then answers requests in
// order. It reports errors instead of throwing them, so that a bad text does not end it.

const port = parentPort
if (port === null) throw new Error('tokenizer-worker is the entry of a worker thread, not a module to import')
const { bytes, path, tables } = workerData as WorkerInput

const reply = (message: WorkerReply, transfer: ArrayBuffer[] = []) => port.postMessage(message, transfer)
const failure = (id: number, error: unknown): WorkerReply =>
  NibbletError.is(error)
    ? { id, error: { class: error.name, code: error.code, message: error.message, details: { ...error.details } } }
    : { id, error: { class: 'Error', code: '', message: String((error as Error)?.message ?? error), details: {} } }

try {
  const file = readTokenizerFile(new Uint8Array(bytes), path)
  const encoder = new SubwordEncoder(file, path)
  port.on('message', ({ id, text, special, literals }: WorkerRequest) => {
    try {
      const ids = encoder.encode(text, special, literals)
      reply({ id, ids }, [ids.buffer])
    } catch (error) {
      reply(failure(id, error))
    }
  })
  if (tables) {
    const built = vocabularyTables(file)
    reply({ id: 0, tables: built }, [built.spellingEnds.buffer, built.bytes.buffer, built.byteEnds.buffer])
  } else {
    reply({ id: 0 })
  }
} catch (error) {
  reply(failure(0, error))
  port.close()
}
