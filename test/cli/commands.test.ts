import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { BindingError } from '../../lib/errors.js'
import { cli, startCli } from '../helpers/fake-cli.js'
import { encodeText } from '../helpers/fake-context.js'

const says = (text: string) => ({ ids: encodeText(text) })
const sum = says('1 + 2 = 3\n</think>\n938')

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'nibblet-cli-'))
})
afterAll(() => rm(folder, { recursive: true }))

describe('the program', () => {
  test.each([[[]], [['--help']], [['-h']]])('help with %o', async (argv) => {
    const { code, out } = await cli({ argv })
    expect(code).toBe(0)
    for (const name of ['chat', 'generate', 'score', 'eval', 'inspect', 'doctor', 'quantize'])
      expect(out).toContain(`  ${name} `)
  })

  test('--version', async () => {
    expect(await cli({ argv: ['--version'] })).toMatchObject({ code: 0, out: '1.2.3\n', err: '' })
  })

  test.each(['chat', 'generate', 'score', 'eval', 'inspect', 'doctor', 'quantize'])(
    '%s --help names its flags',
    async (name) => {
      const { code, out, calls } = await cli({ argv: [name, '--help'] })
      expect(code).toBe(0)
      expect(out).toMatch(new RegExp(`^Usage: nibblet ${name} `))
      if (name !== 'doctor' && name !== 'quantize') {
        for (const flag of ['device', 'threads', 'kv-cache', 'exact', 'context-length'])
          expect(out).toContain(`--${flag}`)
      }
      if (name === 'chat' || name === 'generate') {
        for (const flag of [
          'no-thinking',
          'thinking-budget',
          'max-tokens',
          'temperature',
          'top-k',
          'top-p',
          'min-p',
          'seed',
          'stop',
        ]) {
          expect(out).toContain(`--${flag}`)
        }
      }
      expect(calls.loads).toEqual([])
    },
  )

  test.each([
    [['chatt'], /Unknown command 'chatt'\. Did you mean chat\?/],
    [['--verbos'], /Unknown flag --verbos\. Flags follow the command\./],
    [
      ['chat', 'tiny', 'Hi', '--max-token', '3'],
      /Unknown flag --max-token\. Did you mean --max-tokens\?\nSee `nibblet chat --help`/,
    ],
    [['chat', 'tiny', 'Hi', '--max-tokens'], /--max-tokens needs a value/],
    [['chat', 'tiny', 'Hi', 'there'], /'there' is one argument too many\. Quote/],
    [
      ['chat', 'tiny', 'Hi', '--exact', '--kv-cache', 'fp8'],
      /--exact keeps the cache in float32 and excludes --kv-cache/,
    ],
    [['chat', 'tiny', 'Hi', '--kv-cache', 'f16'], /Expected fp8 or bf16/],
    [['chat', 'tiny', 'Hi', '--device', 'gpu'], /Expected auto, cpu, cuda or cuda:N/],
    [['chat', 'tiny', 'Hi', '--threads', '0'], /at least 1/],
    [['chat', 'tiny', 'Hi', '--no-thinking', '--thinking-budget', '3'], /--no-thinking excludes --thinking-budget/],
    [['chat', 'tiny', ''], /The prompt is empty/],
    [['chat', 'tiny', 'Hi', '--stop', ''], /--stop needs a text/],
    [['generate'], /<model> is missing/],
    [['generate', 'tiny'], /either as --prompt TEXT or as --prompt-file/],
    [['generate', 'tiny', '--prompt', 'a', '--prompt-file', 'b'], /either as/],
    [['generate', 'tiny', '--prompt', 'a', '--raw', '--no-thinking'], /--raw has no template/],
    [['generate', 'tiny', '--prompt', 'a', '--logprobs', '2'], /add --json/],
    [['score', 'tiny'], /--ids is missing/],
    [['score', 'tiny', '--ids', '1,,2'], /Expected token ids with commas/],
    [['score', 'tiny', '--ids', '1,-2'], /Expected token ids/],
    [['score', 'tiny', '--ids', '1,2', '--last', '3'], /only 2 positions/],
    [['eval', 'tiny'], /--tasks is missing/],
    [['doctor', 'tiny'], /one argument too many/],
    [['quantize', 'a'], /<out> is missing/],
    [['quantize', 'a', 'b'], /--format is missing/],
    [['quantize', 'a', 'b', '--format', 'fp4'], /Expected nvfp4/],
  ])('%o exits with 2', async (argv, message) => {
    const { code, out, err, calls } = await cli({ argv })
    expect(code).toBe(2)
    expect(err).toMatch(message)
    expect(err).toMatch(/^nibblet: /)
    expect(out).toBe('')
    expect(calls.loads).toEqual([])
  })

  test('an error while running is one line and exit code 1; --verbose adds the stack', async () => {
    const quiet = await cli({ argv: ['chat', 'missing', 'Hi'] })
    expect(quiet).toMatchObject({ code: 1, out: '', err: "nibblet: There is no model 'missing'. (MODEL_NOT_FOUND)\n" })
    const verbose = await cli({ argv: ['chat', 'missing', 'Hi', '--verbose'] })
    expect(verbose.code).toBe(1)
    expect(verbose.err).toMatch(/\n {4}at /)
  })

  test('the listener for Ctrl-C is gone at the end', async () => {
    expect((await cli({ argv: ['--version'] })).listeners.size).toBe(0)
  })
})

describe('chat, one turn', () => {
  test('answer on stdout, reasoning on stderr, no colour', async () => {
    const result = await cli({ argv: ['chat', 'tiny', 'What is 291 + 647?'], scripts: [sum] })
    expect(result).toMatchObject({ code: 0, out: '938\n', err: '1 + 2 = 3\n' })
    expect(result.calls).toMatchObject({ disposed: 1, loads: [['tiny', { kvCache: 'fp8' }]] })
    expect(result.engine.requests[0]?.sampling.temperature).toBe(0)
  })

  test('on a terminal the reasoning is dimmed in front of the answer', async () => {
    const { out, err } = await cli({ argv: ['chat', 'tiny', 'Hi'], scripts: [says('hm</think>\nyes')], terminal: true })
    expect(out).toBe('\x1b[2mh\x1b[22m\x1b[2mm\x1b[22m\nyes\n')
    expect(err).toBe('\r\x1b[2Kloading (read) 1/2 MB 50%\r\x1b[2K')
  })

  test('NO_COLOR', async () => {
    const { out } = await cli({
      argv: ['chat', 'tiny', 'Hi'],
      scripts: [says('hm</think>\nyes')],
      terminal: true,
      env: { NO_COLOR: '1' },
    })
    expect(out).toBe('hm\nyes\n')
  })

  test('the prompt comes from stdin when that is no terminal; a lone argument is the model', async () => {
    const { code, out, engine } = await cli({
      argv: ['chat', 'tiny'],
      stdin: 'Hi there\n',
      scripts: [says('x</think>yes')],
    })
    expect({ code, out }).toEqual({ code: 0, out: 'yes\n' })
    expect(engine.requests[0]?.prompt).toEqual(
      Uint32Array.from(encodeText('<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n<think>\n')),
    )
    expect((await cli({ argv: ['chat', 'missing'], stdin: 'Hi' })).err).toContain("no model 'missing'")
    expect((await cli({ argv: ['chat'], stdin: 'Hi', scripts: [sum] })).calls.loads[0]?.[0]).toBe('tiny')
    expect((await cli({ argv: ['chat'], stdin: '\n' })).code).toBe(2)
  })

  test('stdin is left alone when there is a prompt', async () => {
    expect((await cli({ argv: ['chat', 'tiny', 'Hi'], stdin: null, scripts: [sum] })).out).toBe('938\n')
  })

  test('flags reach the model', async () => {
    const { engine, calls } = await cli({
      argv: [
        'chat',
        'tiny',
        'Hi',
        '--temperature',
        '0.7',
        '--top-k',
        '5',
        '--top-p',
        '0.9',
        '--min-p',
        '0.05',
        '--seed',
        '3',
      ]
        .concat(['--max-tokens', '50', '--thinking-budget', '4', '--stop', 'x', '--stop', 'y'])
        .concat(['--device', 'cpu', '--threads', '2', '--kv-cache', 'bf16', '--context-length', '500']),
      scripts: [says('long reasoning</think>abxc')],
    })
    expect(calls.loads[0]?.[1]).toMatchObject({ device: 'cpu', threads: 2, kvCache: 'bf16', contextLength: 500 })
    expect(engine.requests[0]).toMatchObject({
      sampling: { temperature: 0.7, topK: 5, topP: 0.9, minP: 0.05, seed: 3 },
      maxTokens: 50,
      thinking: { budget: 4 },
    })
  })

  test('a sampling flag ends greedy, the rest comes from the checkpoint', async () => {
    const { engine } = await cli({ argv: ['chat', 'tiny', 'Hi', '--seed', '3'], scripts: [sum] })
    expect(engine.requests[0]?.sampling).toMatchObject({ temperature: 0.6, topP: 0.95, seed: 3 })
  })

  test('--exact leaves the cache format out; --no-thinking', async () => {
    const { calls, out } = await cli({ argv: ['chat', 'tiny', 'Hi', '--exact', '--no-thinking'], scripts: [says('4')] })
    expect(calls.loads[0]?.[1].exact).toBe(true)
    expect('kvCache' in (calls.loads[0]?.[1] ?? {})).toBe(false)
    expect(out).toBe('4\n')
  })

  test('a tool call is shown, a cut-off answer is noted', async () => {
    const call = says('x</think><tool_call>\n<function=f>\n<parameter=a>\nb\n</parameter>\n</function>\n</tool_call>')
    expect((await cli({ argv: ['chat', 'tiny', 'Hi'], scripts: [call] })).out).toBe('tool call: f {"a":"b"}\n')
    const cut = await cli({ argv: ['chat', 'tiny', 'Hi', '--max-tokens', '3'], scripts: [says('thinking')] })
    expect(cut).toMatchObject({ code: 0, out: '', err: 'thi\n[cut off before the answer began, at 3 tokens]\n' })
  })

  test('Ctrl-C ends with 130 and frees the model', async () => {
    const started = startCli({
      argv: ['chat', 'tiny', 'Hi', '--no-thinking'],
      scripts: [{ ids: encodeText('ab'), hang: true }],
    })
    while (started.stdout.text !== 'ab') await new Promise((resolve) => setTimeout(resolve, 1))
    started.interrupt()
    expect(await started.exit).toBe(130)
    expect(started.calls.disposed).toBe(1)
    expect(started.stderr.text).toBe('')
  })

  test('Ctrl-C while stdin is awaited', async () => {
    const started = startCli({ argv: ['chat'], stdin: null })
    await new Promise((resolve) => setTimeout(resolve, 5))
    started.interrupt()
    expect(await started.exit).toBe(130)
  })

  test('a closed pipe ends quietly and stops the model', async () => {
    const script = { ids: encodeText('a'.repeat(500)) }
    const started = startCli({ argv: ['chat', 'tiny', 'Hi', '--no-thinking'], scripts: [script] })
    started.stdout.broken = true
    expect(await started.exit).toBe(0)
    expect(started.stderr.text).toBe('')
    expect(started.engine.sampled).toBeLessThan(20)
    expect(started.calls.disposed).toBe(1)
  })
})

describe('generate', () => {
  test('--prompt', async () => {
    expect(await cli({ argv: ['generate', 'tiny', '--prompt', 'Hi'], scripts: [sum] })).toMatchObject({
      code: 0,
      out: '938\n',
    })
  })

  test('--prompt-file: a message without the last line break, or with --raw the exact text', async () => {
    const file = join(folder, 'prompt.txt')
    await writeFile(file, '<|im_start|>Hi\n')
    const message = await cli({ argv: ['generate', 'tiny', '--prompt-file', file], scripts: [sum] })
    expect(message.engine.requests[0]?.prompt).toEqual(
      Uint32Array.from(encodeText('<|im_start|>user\n<|im_start|>Hi<|im_end|>\n<|im_start|>assistant\n<think>\n')),
    )
    const raw = await cli({ argv: ['generate', 'tiny', '--prompt-file', file, '--raw'], scripts: [says('a</think>b')] })
    expect(raw.engine.requests[0]?.prompt).toEqual(Uint32Array.from(encodeText('<|im_start|>Hi\n')))
    expect(raw.out).toBe('a</think>b\n')
    const stdin = await cli({
      argv: ['generate', 'tiny', '--prompt-file', '-', '--raw'],
      stdin: 'x',
      scripts: [says('y')],
    })
    expect(stdin.out).toBe('y\n')
  })

  test('a file that is missing, or is no text', async () => {
    const missing = await cli({ argv: ['generate', 'tiny', '--prompt-file', join(folder, 'none')] })
    expect(missing.code).toBe(1)
    expect(missing.err).toMatch(/Cannot read .*none: ENOENT/)
    const file = join(folder, 'binary')
    await writeFile(file, Buffer.from([0xff, 0xfe, 0x00]))
    expect((await cli({ argv: ['generate', 'tiny', '--prompt-file', file] })).err).toMatch(/is not UTF-8/)
  })

  test('--json prints the whole reply', async () => {
    const { out, err } = await cli({
      argv: ['generate', 'tiny', '--prompt', 'Hi', '--json', '--logprobs', '1'],
      scripts: [sum],
    })
    const reply = JSON.parse(out)
    expect(err).toBe('')
    expect(reply).toMatchObject({ text: '938', reasoning: '1 + 2 = 3', finishReason: 'stop', toolCalls: [] })
    expect(reply.message).toEqual({ role: 'assistant', content: '938', reasoning: '1 + 2 = 3' })
    expect(reply.ids).toHaveLength(reply.usage.outputTokens)
    expect(reply.logprobs[0].top).toHaveLength(1)
    expect(reply.timings.tokensPerSecond).toBeGreaterThan(0)
  })
})

describe('score', () => {
  test('prints JSON with float32 precision', async () => {
    const { out, code } = await cli({ argv: ['score', 'tiny', '--ids', '1,5, 9', '--last', '2'] })
    expect(code).toBe(0)
    const { argmax, logits } = JSON.parse(out)
    expect(argmax).toEqual([2, 6, 10])
    expect(logits).toHaveLength(2)
    expect(logits[1].map(Math.fround)).toEqual([Math.fround(0.1), -1, Math.fround(1 / 3)])
  })

  test('a logit that is no number is an error, not null', async () => {
    const score = async () => ({ argmax: Int32Array.of(1), logits: [Float32Array.of(Number.NaN)] })
    expect(await cli({ argv: ['score', 'tiny', '--ids', '1'], model: { score } })).toMatchObject({ code: 1 })
  })
})

describe('quantize', () => {
  test('hands over folder, output and flags', async () => {
    const { code, calls, out, err } = await cli({ argv: ['quantize', 'in', 'out', '--format', 'nvfp4', '--force'] })
    expect({ code, out, err }).toEqual({ code: 0, out: '', err: 'Wrote out.\n' })
    expect(calls.quantized[0]).toMatchObject(['/models/in', 'out', { format: 'nvfp4', force: true }])
  })
})

describe('doctor', () => {
  test('describes the machine', async () => {
    const { code, out } = await cli({ argv: ['doctor'], env: { NIBBLET_CPU: 'portable' } })
    expect(code).toBe(0)
    expect(out).toContain(process.version)
    expect(out).toContain('/x/nibblet.node, built in this checkout')
    expect(out).toContain('NIBBLET_CPU=portable')
    expect(out).toMatch(/auto +cpu: /)
  })

  test('works without a binary', async () => {
    const locateBinding = async () => {
      throw new BindingError('NO_BINARY', 'No native addon was found. Run `npm run setup`.')
    }
    const { code, out } = await cli({ argv: ['doctor', '--json'], runtime: { locateBinding } })
    expect(code).toBe(1)
    const diagnosis = JSON.parse(out)
    expect(diagnosis.binary).toEqual({
      usable: false,
      reason: 'No native addon was found. Run `npm run setup`. (NO_BINARY)',
    })
    expect(diagnosis.cpu.threads).toBeGreaterThan(0)
    expect(diagnosis.auto.device).toBeUndefined()
  })
})
