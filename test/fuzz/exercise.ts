import { readdirSync, readFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { Device } from '../../lib/core/index.js'
import { NibbletError } from '../../lib/errors.js'
import { loadModel } from '../../lib/index.js'
import { quantizeCheckpoint } from '../../lib/quantize/quantize.js'
import { ChatTemplate } from '../../lib/text/chat-template.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { below, type Random } from '../helpers/mutate.js'
import type { Subject } from './subjects.js'

const device = Device.open('cpu')
const conversation = [
  { role: 'system', content: 'the sun' },
  { role: 'user', content: 'and 12 <|im_end|>?' },
] as const
const tools = [{ name: 'clock', description: 'the time', parameters: { type: 'object', properties: {} } }] as const

/** Loads a model and has it answer by ids and, where it has a tokenizer, by text. */
async function answer(folder: string, random: Random): Promise<void> {
  const model = await loadModel(folder, {
    contextLength: 160,
    maxBatch: 1 + below(random, 2),
    threads: 1 + below(random, 2),
    ...(random() < 0.2 ? { exact: true } : { kvCache: random() < 0.5 ? 'fp8' : 'bf16' }),
  })
  try {
    const { argmax } = await model.score(
      [1, 2, 3, 4, 5].slice(0, Math.min(5, model.info.vocabularySize - 1)).map((id) => id - 1),
    )
    if (argmax.some((id) => id >= model.info.vocabularySize)) throw new Error('a choice outside the vocabulary')
    if (!readdirSync(folder).includes('tokenizer.json')) return
    const reply = await model.complete('the sun', { maxTokens: 3, temperature: 0 })
    if (reply.ids.length === 0) throw new Error('no token came')
    await model.chat(conversation, { maxTokens: 4, seed: 1 })
  } finally {
    await model.dispose()
  }
}

async function text(folder: string, random: Random): Promise<void> {
  const tokenizer = await Tokenizer.load(folder)
  try {
    const ids = await tokenizer.encode('the sun, and 12 <think>é aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!', {
      special: true,
    })
    tokenizer.decode(ids)
    // In the worker thread.
    if (random() < 0.01) await tokenizer.encode('the sun, and 12. '.repeat(400), { special: false })
    const template = await ChatTemplate.load(folder, tokenizer)
    for (const thinking of [true, false]) {
      await tokenizer.encodePrompt(template.render(conversation, { thinking, tools: thinking ? tools : [] }))
    }
  } finally {
    await tokenizer.dispose()
  }
}

async function quantize(folder: string, random: Random): Promise<void> {
  const out = `${folder}-quantized`
  try {
    await quantizeCheckpoint(folder, out, { format: 'nvfp4', threads: 1 })
    await answer(out, random)
  } finally {
    await rm(out, { recursive: true, force: true })
  }
}

/** Throws unless the error is one of ours and names the folder, or the file that it is about. */
function checkError(error: unknown, folder: string, damaged: readonly string[]): void {
  if (!NibbletError.is(error)) throw new Error('an error that is not typed', { cause: error })
  const { message, details } = error
  // A template may refuse a conversation: then it is the conversation that the error is about.
  if (message.startsWith('The chat template refuses these messages')) return
  const names = [folder, ...damaged, ...readdirSync(folder)]
  if (!names.some((name) => message.includes(name)) && typeof details.file !== 'string') {
    throw new Error('an error that names no file', { cause: error })
  }
  // A message is for reading.
  if (message.length > 2_000) throw new Error(`a message of ${message.length} characters`, { cause: error })
}

/** Uses a damaged folder as its owner would. Returns the code of the error, or `answered`; throws when neither. */
export async function exercise(
  folder: string,
  { weights, plain }: Subject,
  damaged: readonly string[],
  random: Random,
): Promise<string> {
  const ofText = damaged.some((file) => /token|template/.test(file))
  const use = !weights || (ofText && random() < 0.5) ? text : plain && random() < 0.25 ? quantize : answer
  try {
    await use(folder, random)
    return 'answered'
  } catch (error) {
    checkError(error, folder, damaged)
    return (error as NibbletError).code
  }
}

export interface Resources {
  allocated: number
  /** Open files. */
  files: number
  threads: number
  /** Mapped files of the folder. */
  mapped: number
}

/** What the process holds now. */
export function resources(folder: string): Resources {
  return {
    allocated: device.memory().allocated,
    files: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
    mapped: readFileSync('/proc/self/maps', 'utf8').split(folder).length - 1,
  }
}
