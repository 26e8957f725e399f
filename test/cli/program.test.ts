import { type ChildProcess, spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** Starts a Node program of the checkout, as `bin` and `npm start` do, with pipes for its streams. */
function start(file: string, argv: string[], stdin: string | undefined = '') {
  const { NO_COLOR: _, NIBBLET_CPU: __, ...env } = process.env
  const child = spawn(process.execPath, [file, ...argv], { cwd: root, env })
  let out = ''
  let err = ''
  child.stdout.on('data', (chunk) => {
    out += chunk
  })
  child.stderr.on('data', (chunk) => {
    err += chunk
  })
  if (stdin !== undefined) child.stdin.end(stdin)
  const exit = new Promise<{ code: number | null; signal: string | null; out: string; err: string }>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, out, err }))
  })
  return { child, exit }
}

const nibblet = (argv: string[], stdin?: string) => start('dist/cli/main.js', argv, stdin)

function seen(child: ChildProcess, stream: 'stdout' | 'stderr'): Promise<void> {
  return new Promise((resolve) => child[stream]?.once('data', () => resolve()))
}

describe('the installed program', () => {
  test('answers: the answer on stdout, the reasoning on stderr', async () => {
    const { code, out, err } = await nibblet(['chat', 'tiny', 'What is 291 + 647?']).exit
    expect({ code, out }).toEqual({ code: 0, out: '938\n' })
    expect(err).toContain('carry 1')
    expect(err).not.toContain('\x1b')
  })

  test('continues the exact text of a file', async () => {
    const prompt = '<s><|im_start|>user\n276 - 23 = ?<|im_end|>\n<|im_start|>assistant\n<think>\n'
    const { code, out } = await nibblet(['generate', 'tiny', '--raw', '--prompt-file', '-'], prompt).exit
    expect({ code, out }).toEqual({ code: 0, out: '6 - 3 = 3\n7 - 2 = 5\n2 - 0 = 2\n</think>\n253\n' })
  })

  test('evaluates held-out tasks', async () => {
    const { code, out, err } = await nibblet([
      'eval',
      'tiny',
      '--tasks',
      'models/tiny/heldout.jsonl',
      '--limit',
      '24',
      '--json',
    ]).exit
    expect({ code, err }).toEqual({ code: 0, err: '' })
    const { thinking, direct } = JSON.parse(out)
    expect(thinking.n + direct.n).toBe(24)
    expect(thinking.exact).toBeGreaterThan(0.85)
    expect(direct.exact).toBeGreaterThan(0.7)
  })

  test('Ctrl-C ends with 130', async () => {
    const { child, exit } = nibblet([
      'generate',
      'tiny',
      '--prompt',
      'Sort from small to large: 9, 8, 7, 6, 5, 4, 3, 2, 1',
    ])
    await seen(child, 'stderr')
    child.kill('SIGINT')
    expect(await exit).toMatchObject({ code: 130, signal: null })
  })

  test('a closed pipe is quiet', async () => {
    const { child, exit } = nibblet(['score', 'tiny', '--ids', '1,2,3,4,5,6,7,8'])
    await seen(child, 'stdout')
    child.stdout?.destroy()
    expect(await exit).toMatchObject({ code: 0, signal: null, err: '' })
  })

  test('scores reach a slow reader whole', async () => {
    const { child, exit } = nibblet(['score', 'tiny', '--ids', '1,10,5,4,5,6,7,8'])
    child.stdout?.pause()
    setTimeout(() => child.stdout?.resume(), 1500)
    const { code, out } = await exit
    expect(code).toBe(0)
    const { argmax, logits } = JSON.parse(out)
    expect(argmax).toHaveLength(8)
    expect(logits.map((row: number[]) => row.indexOf(Math.max(...row)))).toEqual(argmax)
  })

  test('wrong flags exit with 2, errors with 1', async () => {
    expect(await nibblet(['chat', 'tiny', 'Hi', '--max-token', '3']).exit).toMatchObject({ code: 2, out: '' })
    expect(await nibblet(['chat', 'no-such-model', 'Hi']).exit).toMatchObject({ code: 1, out: '' })
  })
})

describe('examples/hello.mjs', () => {
  test('prints the sum', async () => {
    expect(await start('examples/hello.mjs', []).exit).toEqual({ code: 0, signal: null, out: '938\n', err: '' })
  })

  test("is the README's first example", async () => {
    const readme = await readFile(new URL('../../README.md', import.meta.url), 'utf8')
    const source = await readFile(new URL('../../examples/hello.mjs', import.meta.url), 'utf8')
    expect(/```js\n([\s\S]*?)```/.exec(readme)?.[1]).toBe(source)
  })
})
