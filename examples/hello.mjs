import { loadModel } from 'nibblet'

const model = await loadModel('tiny')
try {
  const reply = await model.chat('What is 291 + 647?')
  console.log(reply.text)
} finally {
  await model.dispose()
}
