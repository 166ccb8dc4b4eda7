import os

from mcp.server.mcpserver import MCPServer

mcp = MCPServer("{{name}}")

# Names, descriptions and types are what an agent chooses tools by.


@mcp.tool()
def greet(name: str = "World") -> str:
    """Greets somebody by name"""
    return f"{os.getenv('GREETING', 'Hello')}, {name}!"


@mcp.tool()
def count_words(text: str) -> int:
    """Counts the words of a text"""
    return len(text.split())


if __name__ == "__main__":
    mcp.run(
        transport="streamable-http",
        # The platform says where to listen.
        host=os.getenv("HOST", "127.0.0.1"),
        port=int(os.getenv("PORT", "1338")),
        # Each request stands for itself, so that any instance can answer it.
        stateless_http=True,
        json_response=True,
    )
