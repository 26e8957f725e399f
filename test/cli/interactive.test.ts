import { describe, expect, test } from 'vitest'
import { startCli } from '../helpers/fake-cli.js'
import { encodeText } from '../helpers/fake-context.js'

const says = (text: string) => ({ ids: encodeText(text) })

async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 5000
  while (!condition()) {
    if (Date.now() > deadline) throw new Error('the condition never held')
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

function talk(...scripts: Parameters<typeof startCli>[0]['scripts'] & object) {
  const session = startCli({ argv: ['chat', 'tiny'], stdin: null, terminal: true, env: { NO_COLOR: '1' }, scripts })
  const prompts = () => session.stdout.text.split('> ').length - 1
  let seen = 0
  const ready = async () => {
    await until(() => prompts() > seen)
    seen = prompts()
  }
  return {
    ...session,
    ready,
    type: (text: string) => {
      seen = prompts()
      session.stdin.write(text)
    },
  }
}

describe('interactive chat', () => {
  test('keeps the conversation, samples as the checkpoint suggests, prints the rate, ends at Ctrl-D', async () => {
    const session = talk(says('hm</think>\nHello'), says('so</think>\nGood'))
    await session.ready()
    session.type('Hi\r')
    await until(() => session.stdout.text.includes('tokens/s]'))
    expect(session.stdout.text).toContain('hm\nHello\n[')
    await session.ready()
    session.type('How are you?\r')
    await until(() => session.stdout.text.includes('Good\n['))
    const { engine } = session
    expect(engine.requests[0]?.sampling).toMatchObject({ temperature: 0.6, topP: 0.95 })
    expect(engine.requests[1]?.prompt).toEqual(
      Uint32Array.from(
        encodeText(
          '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n' +
            '<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n<think>\n',
        ),
      ),
    )
    await session.ready()
    session.type('\x04')
    expect(await session.exit).toBe(0)
    expect(session.calls.disposed).toBe(1)
  })

  test('Ctrl-C stops the answer, not the program; the next one at the prompt leaves with 130', async () => {
    const session = talk({ ids: encodeText('x</think>\npart'), hang: true })
    await session.ready()
    session.type('Hi\r')
    await until(() => session.stdout.text.includes('part'))
    session.interrupt()
    await until(() => session.stdout.text.includes('[cancelled, '))
    await session.ready()
    session.type('\x03')
    expect(await session.exit).toBe(130)
    expect(session.engine.running).toBe(0)
    expect(session.calls.disposed).toBe(1)
  })

  test('at an idle prompt the first Ctrl-C clears the line or asks, the second leaves', async () => {
    const session = talk()
    await session.ready()
    session.type('half a li')
    session.stdin.write('\x03')
    session.stdin.write('\x03')
    await until(() => session.stderr.text.includes('Ctrl-C again'))
    session.stdin.write('\x03')
    expect(await session.exit).toBe(130)
    expect(session.engine.requests).toEqual([])
  })

  test('pasted lines are one message; /new forgets the conversation', async () => {
    const session = talk(says('a</think>b'), says('c</think>d'))
    await session.ready()
    session.type('one\ntwo\n')
    await until(() => session.stdout.text.includes('b\n['))
    await session.ready()
    session.type('/new\r')
    await session.ready()
    session.type('three\r')
    await until(() => session.stdout.text.includes('d\n['))
    const prompt = (text: string) =>
      Uint32Array.from(encodeText(`<|im_start|>user\n${text}<|im_end|>\n<|im_start|>assistant\n<think>\n`))
    expect(session.engine.requests.map((request) => request.prompt)).toEqual([prompt('one\ntwo'), prompt('three')])
    await session.ready()
    session.type('\x04')
    expect(await session.exit).toBe(0)
  })

  test('a conversation that is too long is said so, and goes on', async () => {
    const session = talk(says('a</think>b'))
    await session.ready()
    session.type(`${'x'.repeat(1200)}\r`)
    await until(() => session.stderr.text.includes('/new begins a new conversation'))
    await session.ready()
    session.type('short\r')
    await until(() => session.stdout.text.includes('b\n['))
    await session.ready()
    session.type('\x04')
    expect(await session.exit).toBe(0)
  })
})
