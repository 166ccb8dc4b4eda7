import { createServer } from 'node:http'

const server = createServer((_request, response) => {
  response.setHeader('content-type', 'text/html; charset=utf-8')
  response.end('<h1>Hello from {{name}}</h1>\n')
})
server.listen(3000, '0.0.0.0', () => console.log('listening on port 3000'))
